//! An endpoint as it lives: what is in flight, what is connected, what is known of its health and its behaviour; `endpoint/presence.rs` has its coming and
//! going.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    policy::snapshot::EndpointAddress,
    resilience::{
        health::{Health, HealthConfig, HealthState},
        outlier::{EjectionState, OutlierDetector},
        peak_ewma::PeakEwma,
        warm_up::WarmUpConfig,
    },
};

/// What an idle connection may last if nothing is known of the endpoint: below the five seconds of Node's server, which is the
/// shortest of the common ones.
pub const DEFAULT_POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the closing of an idle connection is remembered without being seen again.
const IDLE_CLOSE_RETENTION: Duration = Duration::from_mins(1);

/// An endpoint of a backend, by its address.
#[derive(Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: EndpointAddress,
    /// Its address, written out.
    pub label: Arc<str>,
    /// Apart from every other endpoint that ever was.
    pub id: u64,
    /// Shared by all endpoints of the backend.
    pub counters: Arc<BackendCounters>,
    in_flight: AtomicU32,
    connections: AtomicU32,
    /// [`Health`] as a number, to be read without a lock.
    health: AtomicU8,
    /// Guards the counting of check results.
    checks: Mutex<CheckState>,
    is_retired: AtomicBool,
    /// Guards what is known of its closing of idle connections.
    idle_close: Mutex<Option<IdleClose>>,
    /// Whether outlier detection keeps it out, to be read without a lock.
    is_ejected: AtomicBool,
    /// Guards one call of the machine that watches its results.
    outlier_detector: Mutex<OutlierDetector>,
    /// Guards one call of the machine that follows its latency.
    latency: Mutex<PeakEwma>,
    created_at: Instant,
    /// When its warm-up began, in milliseconds after `born`, or [`WARM`].
    warm_up_started_millis: AtomicI64,
    /// Whether it came to a backend that was already served, so that it is new among its peers.
    is_newcomer: bool,
    /// The start that it last told of, in milliseconds since 1970.
    advertised_start_millis: AtomicU64,
    /// Whether it has told how it wants to warm up, and may still be doing so.
    has_own_warm_up: AtomicBool,
    /// How it wants to warm up; guards single reads and writes, and is asked only while it does.
    own_warm_up: Mutex<Option<WarmUpConfig>>,
    /// Until when it wants to be left alone, in milliseconds after `born`, plus one; 0 is not at all.
    draining_until_millis: AtomicU64,
    /// Since when, in the same.
    draining_since_millis: AtomicU64,
    /// Whether its address is one of this host, once that was asked.
    is_local: OnceLock<bool>,
}

/// It is not warming up.
const NOT_WARMING_UP: i64 = i64::MIN;

/// After how long it was seen to close an idle connection or announced that it would, and when that was last so.
#[derive(Debug, Clone, Copy)]
struct IdleClose {
    idle_time: Duration,
    observed_at: Instant,
}

#[derive(Debug, Default)]
struct CheckState {
    health: HealthState,
    last_result: String,
}

/// What is counted of a backend over all reloads.
#[derive(Debug, Default)]
pub struct BackendCounters {
    connections: AtomicU32,
    pub(crate) in_flight: AtomicU32,
    pub(crate) round_robin_index: AtomicUsize,
    pub(crate) is_panicking: AtomicBool,
    /// Rises whenever an endpoint becomes available or ceases to be.
    pub(crate) availability_version: AtomicU64,
    /// Endpoints that outlier detection keeps out.
    pub(crate) ejected: AtomicUsize,
    /// Guards the question who may be ejected, which is about all endpoints.
    pub(crate) ejection_lock: Mutex<()>,
    /// When the last half of an interval ended, and how many have; guards single reads and writes.
    half_intervals: Mutex<Option<(Instant, u64)>>,
}

impl EndpointState {
    /// Makes an endpoint of which nothing is known. A newcomer warms up, from now on or from its first good check.
    #[must_use]
    pub fn new(
        address: EndpointAddress,
        id: u64,
        counters: Arc<BackendCounters>,
        is_newcomer: bool,
        now: Instant,
    ) -> Self {
        Self {
            label: address.to_string().into(),
            address,
            id,
            counters,
            in_flight: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            health: AtomicU8::new(0),
            checks: Mutex::default(),
            is_retired: AtomicBool::new(false),
            idle_close: Mutex::new(None),
            is_ejected: AtomicBool::new(false),
            outlier_detector: Mutex::default(),
            latency: Mutex::new(PeakEwma::new(now)),
            created_at: now,
            warm_up_started_millis: AtomicI64::new(if is_newcomer { 0 } else { NOT_WARMING_UP }),
            is_newcomer,
            advertised_start_millis: AtomicU64::new(0),
            has_own_warm_up: AtomicBool::new(false),
            own_warm_up: Mutex::default(),
            draining_until_millis: AtomicU64::new(0),
            draining_since_millis: AtomicU64::new(0),
            is_local: OnceLock::new(),
        }
    }

    /// What a request to it names as its host, if it names none itself.
    #[must_use]
    pub fn authority(&self) -> &str {
        match self.address {
            EndpointAddress::Tcp(_) => &self.label,
            EndpointAddress::Unix(_) => "localhost",
        }
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections, busy and idle.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection, if the backend has fewer than `max` and the endpoint fewer than `max_each`.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn try_acquire_connection(
        self: &Arc<Self>,
        max: u32,
        max_per_endpoint: u32,
    ) -> Result<ConnectionGuard, ConnectionLimitReached> {
        let count = |connections: &AtomicU32, max: u32| {
            connections
                .try_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < max).then_some(count + 1)
                })
                .is_ok()
        };
        if !count(&self.counters.connections, max) {
            return Err(ConnectionLimitReached::Backend);
        }
        if !count(&self.connections, max_per_endpoint) {
            self.counters.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(ConnectionLimitReached::Endpoint);
        }
        Ok(ConnectionGuard(self.clone()))
    }

    /// Counts a request until the guard is dropped.
    pub fn start_request(self: &Arc<Self>) -> EndpointGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.counters.in_flight.fetch_add(1, Ordering::Relaxed);
        EndpointGuard(self.clone())
    }

    /// What is known of its health.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Takes the result of an active check; the new health if it changed.
    pub fn record_check(
        &self,
        config: &HealthConfig,
        result: &Result<(), String>,
        now: Instant,
    ) -> Option<Health> {
        let mut checks = self.lock();
        checks.last_result = result
            .as_ref()
            .err()
            .cloned()
            .unwrap_or_else(|| "passed".to_owned());
        let before = checks.health.health();
        let changed = checks.health.record(config, result.is_ok())?;
        drop(checks);
        // A newcomer warms up from its first good check, unless it has said since when it runs.
        let is_new = before == Health::Unknown
            && self.is_newcomer
            && self.advertised_start_millis.load(Ordering::Relaxed) == 0;
        if changed == Health::Healthy && (before == Health::Unhealthy || is_new) {
            self.warm_up_from(now);
        }
        self.health.store(
            match changed {
                Health::Unknown => 0,
                Health::Healthy => 1,
                Health::Unhealthy => 2,
            },
            Ordering::Relaxed,
        );
        self.counters
            .availability_version
            .fetch_add(1, Ordering::Release);
        Some(changed)
    }

    /// The machine that follows its latency.
    pub(crate) fn peak_ewma(&self) -> MutexGuard<'_, PeakEwma> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the balancer takes its latency for.
    #[must_use]
    pub fn estimated_latency(&self, now: Instant) -> Duration {
        self.peak_ewma().latency(now)
    }

    /// What outlier detection lets it be used for.
    #[must_use]
    pub fn ejection_state(&self) -> EjectionState {
        self.outlier_detector().ejection_state()
    }

    /// The machine that watches its results.
    pub(crate) fn outlier_detector(&self) -> MutexGuard<'_, OutlierDetector> {
        self.outlier_detector
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether outlier detection keeps it out.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    /// Changes what outlier detection knows of it, and whether it is out, in one step.
    pub(crate) fn update_outlier_detector<T>(
        &self,
        change: impl FnOnce(&mut OutlierDetector) -> T,
    ) -> T {
        let mut detector = self.outlier_detector();
        let before = detector.ejection_state();
        let result = change(&mut detector);
        let (ejection_state, is_ejected) = (
            detector.ejection_state(),
            detector.ejection_state() != EjectionState::NotEjected && !self.is_retired(),
        );
        // Only ever changed under the host's lock.
        if self.is_ejected.load(Ordering::Relaxed) != is_ejected {
            self.is_ejected.store(is_ejected, Ordering::Relaxed);
            let delta = if is_ejected { 1 } else { usize::MAX };
            self.counters.ejected.fetch_add(delta, Ordering::Relaxed);
        }
        if std::mem::discriminant(&ejection_state) != std::mem::discriminant(&before) {
            self.counters
                .availability_version
                .fetch_add(1, Ordering::Release);
        }
        result
    }

    /// Ends whatever outlier detection holds against it.
    pub(crate) fn uneject(&self) {
        self.update_outlier_detector(OutlierDetector::uneject);
    }

    /// How many checks in a row passed, and the last result in words.
    #[must_use]
    pub fn check_summary(&self) -> (u32, String) {
        let checks = self.lock();
        (
            checks.health.consecutive_passes(),
            checks.last_result.clone(),
        )
    }

    /// Says that it left its backend: connections to it are not kept.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        self.update_outlier_detector(|_| ());
    }

    /// Whether it left its backend.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Learns that the endpoint closes idle connections after this time. The shortest counts, until it has not been seen again for
    /// a while: one restart of an app closes all its connections, and says nothing about its habits.
    pub fn record_idle_close(&self, idle_time: Duration, now: Instant) {
        let mut known = self
            .idle_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| idle_time <= known.idle_time || is_expired(known, now)) {
            *known = Some(IdleClose {
                idle_time,
                observed_at: now,
            });
        }
    }

    /// How long a connection may have been idle to be used again. A request that can be repeated is harmless to lose, one that
    /// cannot keeps twice the distance from the time at which the endpoint closes.
    #[must_use]
    pub fn max_reusable_idle(&self, is_repeatable: bool, now: Instant) -> Duration {
        let known = *self
            .idle_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(IdleClose { idle_time, .. }) = known.filter(|known| !is_expired(*known, now))
        else {
            return DEFAULT_POOL_IDLE_TIMEOUT;
        };
        let margin = if is_repeatable {
            idle_time
                .saturating_sub(Duration::from_millis(500))
                .max(idle_time / 2)
        } else {
            idle_time / 4
        };
        margin.min(DEFAULT_POOL_IDLE_TIMEOUT)
    }

    fn lock(&self) -> MutexGuard<'_, CheckState> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_expired(known: IdleClose, now: Instant) -> bool {
    now.saturating_duration_since(known.observed_at) > IDLE_CLOSE_RETENTION
}

/// A request at an endpoint.
#[derive(Debug)]
#[must_use = "a request is counted as long as its guard lives"]
pub struct EndpointGuard(Arc<EndpointState>);

impl Drop for EndpointGuard {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BackendCounters {
    /// Whether half an interval is over: how many are with this one.
    pub(crate) fn count_ended_half_interval(
        &self,
        half_interval: Duration,
        now: Instant,
    ) -> Option<u64> {
        let mut half_intervals = self
            .half_intervals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (last_ended_at, count) = half_intervals.get_or_insert((now, 0));
        if now.saturating_duration_since(*last_ended_at) < half_interval {
            return None;
        }
        (*last_ended_at, *count) = (now, *count + 1);
        Some(*count)
    }

    /// Connections, busy and idle.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<EndpointState>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which bound a connection would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionLimitReached {
    /// The backend has as many as it may.
    Backend,
    /// The endpoint has.
    Endpoint,
}
pub mod peer_lifecycle;

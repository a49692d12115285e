//! State of one endpoint: its requests, connections, health, latency and ejection.
//!
//! An endpoint keeps this state across reloads while its backend and its address stay the same.
//! This module counts and records. It does not compare endpoints and does not select one;
//! [`crate::state::topology::backend`] and [`crate::state::topology::outlier`] do. The start
//! and the drain that an endpoint announces are in [`peer_lifecycle`].

pub mod peer_lifecycle;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::snapshot::EndpointAddress,
    resilience::{
        health::{Health, HealthConfig, HealthState},
        outlier::{EjectionState, OutlierDetector},
        peak_ewma::PeakEwma,
        warm_up::WarmUpConfig,
    },
    state::atomic_instant::AtomicInstant,
};

/// Maximum idle time of a pooled connection to an endpoint whose idle timeout is unknown. It is
/// less than the five seconds of Node.js, the shortest timeout of the common servers.
pub const DEFAULT_POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Time after which an observed idle timeout is forgotten, unless it is observed again.
const IDLE_CLOSE_RETENTION: Duration = Duration::from_mins(1);

/// Endpoint of a backend, identified by its address.
#[derive(Debug)]
pub struct EndpointState {
    /// Address to which connections are opened.
    pub address: EndpointAddress,
    /// Address as text, for logs, metrics and the host of a request.
    pub label: Arc<str>,
    /// Number that no other endpoint of this process has, not even a later one at the same
    /// address.
    pub id: u64,
    /// Counts that all endpoints of the backend share.
    pub counters: Arc<BackendCounters>,
    in_flight: AtomicU32,
    connections: AtomicU32,
    /// Health according to `checks`, readable without a lock.
    health: AtomicHealth,
    /// Results of active checks; the lock covers one access.
    checks: Mutex<CheckState>,
    is_retired: AtomicBool,
    /// Observed idle timeout of the endpoint; the lock covers one access.
    idle_close: Mutex<Option<IdleClose>>,
    /// Whether the endpoint is ejected or on probation, readable without a lock.
    is_ejected: AtomicBool,
    /// State machine of outlier detection; the lock covers one call.
    outlier_detector: Mutex<OutlierDetector>,
    /// Latency estimate of the load balancer; the lock covers one call.
    latency: Mutex<PeakEwma>,
    /// Start of the latest warm-up; none if there was no warm-up.
    warm_up_started_at: AtomicInstant,
    /// Whether the backend had endpoints before, so that this one is new among its peers.
    is_newcomer: bool,
    /// Start that the endpoint last announced, in milliseconds since 1970; 0 means none.
    advertised_start_millis: AtomicU64,
    /// Whether the endpoint announced a warm-up that may still be in progress.
    has_own_warm_up: AtomicBool,
    /// Warm-up that the endpoint announced; the lock covers one access.
    own_warm_up: Mutex<Option<WarmUpConfig>>,
    /// End of the draining mark; none if the endpoint is not draining.
    draining_until: AtomicInstant,
    /// Time of the latest draining announcement; none if there was no announcement.
    draining_since: AtomicInstant,
    /// Whether the address belongs to this host, once that has been determined.
    is_local: OnceLock<bool>,
}

/// Idle time after which the endpoint closed a connection, or announced to close it, and the
/// time of that observation.
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

/// Counts of a backend that are retained across reloads.
#[derive(Debug, Default)]
pub struct BackendCounters {
    connections: AtomicU32,
    pub(in crate::state) in_flight: AtomicU32,
    pub(in crate::state) round_robin_index: AtomicUsize,
    pub(in crate::state) is_panicking: AtomicBool,
    /// Incremented when an endpoint may have become available or unavailable, and when a
    /// warm-up starts.
    pub(in crate::state) availability_version: AtomicU64,
    /// Number of endpoints that are ejected or on probation.
    pub(in crate::state) ejected: AtomicUsize,
    /// Lock for a decision to eject an endpoint, which depends on all endpoints of the backend.
    pub(in crate::state) ejection_lock: Mutex<()>,
    /// End of the latest half interval of outlier detection, and the number of ended ones; the
    /// lock covers one access.
    half_intervals: Mutex<Option<(Instant, u64)>>,
}

impl EndpointState {
    /// Creates an endpoint without recorded results.
    ///
    /// A newcomer starts its warm-up now, and again with its first passed check.
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
            health: AtomicHealth::default(),
            checks: Mutex::default(),
            is_retired: AtomicBool::new(false),
            idle_close: Mutex::new(None),
            is_ejected: AtomicBool::new(false),
            outlier_detector: Mutex::default(),
            latency: Mutex::new(PeakEwma::new(now)),
            warm_up_started_at: AtomicInstant::new(now, is_newcomer.then_some(now)),
            is_newcomer,
            advertised_start_millis: AtomicU64::new(0),
            has_own_warm_up: AtomicBool::new(false),
            own_warm_up: Mutex::default(),
            draining_until: AtomicInstant::new(now, None),
            draining_since: AtomicInstant::new(now, None),
            is_local: OnceLock::new(),
        }
    }

    /// Returns the host for requests that name none: the address, or `localhost` for a Unix
    /// socket.
    #[must_use]
    pub fn authority(&self) -> &str {
        match self.address {
            EndpointAddress::Tcp(_) => &self.label,
            EndpointAddress::Unix(_) => "localhost",
        }
    }

    /// Returns the number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the number of connections, busy and idle.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection, if the backend has fewer than `max` and the endpoint fewer than
    /// `max_per_endpoint`.
    ///
    /// # Errors
    /// Returns the limit that is reached.
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

    /// Counts a request in flight until the returned guard is dropped.
    pub fn start_request(self: &Arc<Self>) -> EndpointGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.counters.in_flight.fetch_add(1, Ordering::Relaxed);
        EndpointGuard(self.clone())
    }

    /// Returns the health of the endpoint according to its active checks.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.load()
    }

    /// Records the result of an active check, and returns the new health if it changed.
    ///
    /// A recovered endpoint starts a warm-up, and so does a newcomer at its first passed check.
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
        // A newcomer starts its warm-up here, unless it has announced its own start.
        let is_new = before == Health::Unknown
            && self.is_newcomer
            && self.advertised_start_millis.load(Ordering::Relaxed) == 0;
        if changed == Health::Healthy && (before == Health::Unhealthy || is_new) {
            self.warm_up_from(now);
        }
        self.health.store(changed);
        self.counters.record_availability_change();
        Some(changed)
    }

    /// Locks and returns the latency estimate.
    pub(in crate::state) fn peak_ewma(&self) -> MutexGuard<'_, PeakEwma> {
        self.latency.lock()
    }

    /// Returns the latency that the load balancer estimates.
    #[must_use]
    pub fn estimated_latency(&self, now: Instant) -> Duration {
        self.peak_ewma().latency(now)
    }

    /// Returns the state of the endpoint in outlier detection.
    #[must_use]
    pub fn ejection_state(&self) -> EjectionState {
        self.outlier_detector().ejection_state()
    }

    /// Locks and returns the state machine of outlier detection.
    pub(in crate::state) fn outlier_detector(&self) -> MutexGuard<'_, OutlierDetector> {
        self.outlier_detector.lock()
    }

    /// Returns whether the endpoint is ejected or on probation.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    /// Changes the state of outlier detection, together with the published flag and counts.
    pub(in crate::state) fn update_outlier_detector<T>(
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
        // All writers hold the lock of the detector, so the flag cannot change between load and
        // store.
        if self.is_ejected.load(Ordering::Relaxed) != is_ejected {
            self.is_ejected.store(is_ejected, Ordering::Relaxed);
            let delta = if is_ejected { 1 } else { usize::MAX };
            self.counters.ejected.fetch_add(delta, Ordering::Relaxed);
        }
        if std::mem::discriminant(&ejection_state) != std::mem::discriminant(&before) {
            self.counters.record_availability_change();
        }
        result
    }

    /// Ends an ejection and forgets earlier ones.
    pub(in crate::state) fn uneject(&self) {
        self.update_outlier_detector(OutlierDetector::uneject);
    }

    /// Returns the number of passed checks in a row, and the latest result as text.
    #[must_use]
    pub fn check_summary(&self) -> (u32, String) {
        let checks = self.lock();
        (
            checks.health.consecutive_passes(),
            checks.last_result.clone(),
        )
    }

    /// Marks the endpoint as removed from its backend, so that connections to it are not
    /// pooled.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        self.update_outlier_detector(|_| ());
    }

    /// Returns whether the endpoint was removed from its backend.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Records an idle time after which the endpoint closed a connection, or announced to close
    /// it.
    ///
    /// The shortest value counts until it has not been observed for one minute. A restart of an
    /// app closes all connections, which says nothing about its idle timeout.
    pub fn record_idle_close(&self, idle_time: Duration, now: Instant) {
        let mut known = self.idle_close.lock();
        if known.is_none_or(|known| idle_time <= known.idle_time || is_expired(known, now)) {
            *known = Some(IdleClose {
                idle_time,
                observed_at: now,
            });
        }
    }

    /// Returns the maximum idle time of a pooled connection that a request may use.
    ///
    /// A repeatable request may use a connection until 500 ms before the known idle timeout, or
    /// at least until half of it. Any other request is lost if the endpoint closes the
    /// connection, so it may use only a quarter. The maximum, also for an unknown timeout, is
    /// [`DEFAULT_POOL_IDLE_TIMEOUT`].
    #[must_use]
    pub fn max_reusable_idle(&self, is_repeatable: bool, now: Instant) -> Duration {
        let known = *self.idle_close.lock();
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
        self.checks.lock()
    }
}

/// [`Health`] that is read and written without a lock; at first [`Health::Unknown`].
#[derive(Debug, Default)]
struct AtomicHealth(AtomicU8);

impl AtomicHealth {
    fn load(&self) -> Health {
        match self.0.load(Ordering::Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    fn store(&self, health: Health) {
        let number = match health {
            Health::Unknown => 0,
            Health::Healthy => 1,
            Health::Unhealthy => 2,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}

fn is_expired(known: IdleClose, now: Instant) -> bool {
    now.saturating_duration_since(known.observed_at) > IDLE_CLOSE_RETENTION
}

/// Request in flight at an endpoint, counted until this guard is dropped.
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
    /// Ends the current half interval if it is over, and returns the number of ended ones.
    pub(in crate::state) fn count_ended_half_interval(
        &self,
        half_interval: Duration,
        now: Instant,
    ) -> Option<u64> {
        let mut half_intervals = self.half_intervals.lock();
        let (last_ended_at, count) = half_intervals.get_or_insert((now, 0));
        if now.saturating_duration_since(*last_ended_at) < half_interval {
            return None;
        }
        (*last_ended_at, *count) = (now, *count + 1);
        Some(*count)
    }

    /// Causes the next selection to compute again which endpoints can be selected.
    fn record_availability_change(&self) {
        self.availability_version.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of connections of the backend, busy and idle.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Connection to an endpoint, counted until this guard is dropped.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<EndpointState>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connection limit that a new connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionLimitReached {
    /// The backend has its maximum number of connections.
    Backend,
    /// The endpoint has its maximum number of connections.
    Endpoint,
}

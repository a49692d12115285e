//! An endpoint as it lives: what is in flight, what is connected, what is known of its health and its behaviour; `endpoint/presence.rs` has its coming and
//! going.

pub mod presence;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    policy::snapshot::Address,
    resilience::{
        ewma::PeakEwma,
        health::{Health, HealthConfig, HealthState},
        outlier::{Host, Standing},
        warm_up::WarmUpConfig,
    },
};

/// What an idle connection may last if nothing is known of the endpoint: below the five seconds of Node's server, which is the
/// shortest of the common ones.
pub const DEFAULT_POOL_IDLE: Duration = Duration::from_secs(4);

/// How long the closing of an idle connection is remembered without being seen again.
const IDLE_CLOSE_MEMORY: Duration = Duration::from_mins(1);

/// An endpoint of a backend, by its address.
#[derive(Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: Address,
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
    is_out: AtomicBool,
    /// Guards one call of the machine that watches its results.
    host: Mutex<Host>,
    /// Guards one call of the machine that follows its latency.
    latency: Mutex<PeakEwma>,
    born: Instant,
    /// When its warm-up began, in milliseconds after `born`, or [`WARM`].
    warming_since: AtomicI64,
    /// Whether it came to a backend that was already served, so that it is new among its peers.
    is_newcomer: bool,
    /// The start that it last told of, in milliseconds since 1970.
    advertised: AtomicU64,
    /// Whether it has told how it wants to warm up, and may still be doing so.
    has_curve: AtomicBool,
    /// How it wants to warm up; guards single reads and writes, and is asked only while it does.
    curve: Mutex<Option<WarmUpConfig>>,
    /// Until when it wants to be left alone, in milliseconds after `born`, plus one; 0 is not at all.
    alone_until: AtomicU64,
    /// Since when, in the same.
    alone_since: AtomicU64,
    /// Whether its address is one of this host, once that was asked.
    is_here: OnceLock<bool>,
}

/// It is not warming up.
const WARM: i64 = i64::MIN;

/// After how long it was seen to close an idle connection or announced that it would, and when that was last so.
#[derive(Debug, Clone, Copy)]
struct IdleClose {
    after: Duration,
    learned: Instant,
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
    pub(super) in_flight: AtomicU32,
    pub(super) turn: AtomicUsize,
    pub(super) is_panicking: AtomicBool,
    /// Rises whenever an endpoint becomes available or ceases to be.
    pub(super) version: AtomicU64,
    /// Endpoints that outlier detection keeps out.
    pub(super) out: AtomicUsize,
    /// Guards the question who may be ejected, which is about all endpoints.
    pub(super) ejecting: Mutex<()>,
    /// When the last half of an interval ended, and how many have; guards single reads and writes.
    halves: Mutex<Option<(Instant, u64)>>,
}

impl EndpointState {
    /// Makes an endpoint of which nothing is known. A newcomer warms up, from now on or from its first good check.
    #[must_use]
    pub fn new(
        address: Address,
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
            is_out: AtomicBool::new(false),
            host: Mutex::default(),
            latency: Mutex::new(PeakEwma::new(now)),
            born: now,
            warming_since: AtomicI64::new(if is_newcomer { 0 } else { WARM }),
            is_newcomer,
            advertised: AtomicU64::new(0),
            has_curve: AtomicBool::new(false),
            curve: Mutex::default(),
            alone_until: AtomicU64::new(0),
            alone_since: AtomicU64::new(0),
            is_here: OnceLock::new(),
        }
    }

    /// What a request to it names as its host, if it names none itself.
    #[must_use]
    pub fn authority(&self) -> &str {
        match self.address {
            Address::Tcp(_) => &self.label,
            Address::Unix(_) => "localhost",
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
    pub fn try_connect(
        self: &Arc<Self>,
        max: u32,
        max_each: u32,
    ) -> Result<ConnectionGuard, TooMany> {
        let count = |connections: &AtomicU32, max: u32| {
            connections
                .try_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < max).then_some(count + 1)
                })
                .is_ok()
        };
        if !count(&self.counters.connections, max) {
            return Err(TooMany::OfBackend);
        }
        if !count(&self.connections, max_each) {
            self.counters.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany::OfEndpoint);
        }
        Ok(ConnectionGuard(self.clone()))
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> EndpointGuard {
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
    pub fn checked(
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
            && self.advertised.load(Ordering::Relaxed) == 0;
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
        self.counters.version.fetch_add(1, Ordering::Release);
        Some(changed)
    }

    /// The machine that follows its latency.
    pub(super) fn latency(&self) -> MutexGuard<'_, PeakEwma> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the balancer takes its latency for.
    #[must_use]
    pub fn latency_now(&self, now: Instant) -> Duration {
        self.latency().latency(now)
    }

    /// What outlier detection lets it be used for.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.host().standing()
    }

    /// The machine that watches its results.
    pub(super) fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether outlier detection keeps it out.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    /// Changes what outlier detection knows of it, and whether it is out, in one step.
    pub(super) fn with_host<T>(&self, change: impl FnOnce(&mut Host) -> T) -> T {
        let mut host = self.host();
        let before = host.standing();
        let result = change(&mut host);
        let (standing, is_out) = (
            host.standing(),
            host.standing() != Standing::In && !self.is_retired(),
        );
        // Only ever changed under the host's lock.
        if self.is_out.load(Ordering::Relaxed) != is_out {
            self.is_out.store(is_out, Ordering::Relaxed);
            let one = if is_out { 1 } else { usize::MAX };
            self.counters.out.fetch_add(one, Ordering::Relaxed);
        }
        if std::mem::discriminant(&standing) != std::mem::discriminant(&before) {
            self.counters.version.fetch_add(1, Ordering::Release);
        }
        result
    }

    /// Ends whatever outlier detection holds against it.
    pub(super) fn pardon(&self) {
        self.with_host(Host::pardon);
    }

    /// How many checks in a row passed, and the last result in words.
    #[must_use]
    pub fn check_summary(&self) -> (u32, String) {
        let checks = self.lock();
        (checks.health.passes_in_a_row(), checks.last_result.clone())
    }

    /// Says that it left its backend: connections to it are not kept.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        self.with_host(|_| ());
    }

    /// Whether it left its backend.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Learns that the endpoint closes idle connections after this time. The shortest counts, until it has not been seen again for
    /// a while: one restart of an app closes all its connections, and says nothing about its habits.
    pub fn learn_idle_close(&self, after: Duration, now: Instant) {
        let mut known = self
            .idle_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| after <= known.after || is_forgotten(known, now)) {
            *known = Some(IdleClose {
                after,
                learned: now,
            });
        }
    }

    /// How long a connection may have been idle to be used again. A request that can be repeated is harmless to lose, one that
    /// cannot keeps twice the distance from the time at which the endpoint closes.
    #[must_use]
    pub fn reusable_idle(&self, is_repeatable: bool, now: Instant) -> Duration {
        let known = *self
            .idle_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(IdleClose { after: learned, .. }) =
            known.filter(|known| !is_forgotten(*known, now))
        else {
            return DEFAULT_POOL_IDLE;
        };
        let margin = if is_repeatable {
            learned
                .saturating_sub(Duration::from_millis(500))
                .max(learned / 2)
        } else {
            learned / 4
        };
        margin.min(DEFAULT_POOL_IDLE)
    }

    fn lock(&self) -> MutexGuard<'_, CheckState> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_forgotten(known: IdleClose, now: Instant) -> bool {
    now.saturating_duration_since(known.learned) > IDLE_CLOSE_MEMORY
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
    pub(super) fn ended_half(&self, half: Duration, now: Instant) -> Option<u64> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = halves.get_or_insert((now, 0));
        if now.saturating_duration_since(*last) < half {
            return None;
        }
        (*last, *count) = (now, *count + 1);
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
pub enum TooMany {
    /// The backend has as many as it may.
    OfBackend,
    /// The endpoint has.
    OfEndpoint,
}

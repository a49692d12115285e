//! An endpoint and a backend as they live: what is in flight, what is connected, what is known of their health.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    policy::snapshot::{BackendSpec, Balancer, EndpointSpec},
    resilience::{
        balance,
        health::{Health, HealthConfig, HealthState},
    },
    telemetry::metrics::BackendMetrics,
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
    pub address: SocketAddr,
    /// Its address, written out.
    pub label: Arc<str>,
    /// Apart from every other endpoint that ever was.
    pub id: u64,
    /// Shared by all endpoints of the backend.
    pub counters: Arc<BackendCounters>,
    in_flight: AtomicU32,
    /// [`Health`] as a number, to be read without a lock.
    health: AtomicU8,
    /// Guards the counting of check results.
    checks: Mutex<CheckState>,
    is_retired: AtomicBool,
    /// Guards what is known of its closing of idle connections.
    idle_close: Mutex<Option<IdleClose>>,
}

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
    turn: AtomicUsize,
    is_panicking: AtomicBool,
}

impl EndpointState {
    /// Makes an endpoint of which nothing is known.
    #[must_use]
    pub fn new(spec: &EndpointSpec, id: u64, counters: Arc<BackendCounters>) -> Self {
        Self {
            address: spec.address,
            label: spec.address.to_string().into(),
            id,
            counters,
            in_flight: AtomicU32::new(0),
            health: AtomicU8::new(0),
            checks: Mutex::default(),
            is_retired: AtomicBool::new(false),
            idle_close: Mutex::new(None),
        }
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> EndpointGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
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
    pub fn checked(&self, config: &HealthConfig, result: &Result<(), String>) -> Option<Health> {
        let mut checks = self.lock();
        checks.last_result = result.as_ref().err().cloned().unwrap_or_else(|| "passed".to_owned());
        let changed = checks.health.record(config, result.is_ok())?;
        self.health.store(
            match changed {
                Health::Unknown => 0,
                Health::Healthy => 1,
                Health::Unhealthy => 2,
            },
            Ordering::Relaxed,
        );
        Some(changed)
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
    }

    /// Whether it left its backend.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Learns that the endpoint closes idle connections after this time. The shortest counts, until it has not been seen again for
    /// a while: one restart of an app closes all its connections, and says nothing about its habits.
    pub fn learn_idle_close(&self, after: Duration, now: Instant) {
        let mut known = self.idle_close.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| after <= known.after || is_forgotten(known, now)) {
            *known = Some(IdleClose { after, learned: now });
        }
    }

    /// How long a connection may have been idle to be used again. A request that can be repeated is harmless to lose, one that
    /// cannot keeps twice the distance from the time at which the endpoint closes.
    #[must_use]
    pub fn reusable_idle(&self, is_repeatable: bool, now: Instant) -> Duration {
        let known = *self.idle_close.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(IdleClose { after: learned, .. }) = known.filter(|known| !is_forgotten(*known, now)) else { return DEFAULT_POOL_IDLE };
        let margin = if is_repeatable { learned.saturating_sub(Duration::from_millis(500)).max(learned / 2) } else { learned / 4 };
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
    }
}

impl BackendCounters {
    /// Connections, busy and idle.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection if there are fewer than `max`.
    #[must_use]
    pub fn try_connect(self: &Arc<Self>, max: u32) -> Option<ConnectionGuard> {
        let counted = self.connections.try_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1));
        counted.ok().map(|_| ConnectionGuard(self.clone()))
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<BackendCounters>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A backend as of one set of policies, joined with its endpoints.
#[derive(Debug)]
pub struct BackendState {
    /// What the policy says.
    pub spec: BackendSpec,
    /// The endpoints, in the order of `spec.endpoints`.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// The handles of its metrics.
    pub metrics: Arc<BackendMetrics>,
    /// What is counted over all reloads.
    pub counters: Arc<BackendCounters>,
}

impl BackendState {
    /// Joins a backend with its endpoints.
    #[must_use]
    pub fn new(spec: BackendSpec, endpoints: Vec<Arc<EndpointState>>, metrics: Arc<BackendMetrics>, counters: Arc<BackendCounters>) -> Self {
        Self { spec, endpoints, metrics, counters }
    }

    /// Picks an endpoint that is healthy and that `may` be picked; `first` and `second` are uniform in `0..1`. When too few are
    /// healthy, health is ignored.
    pub fn pick(&self, first: f64, second: f64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let is_panic = self.is_panicking();
        let cost = |index: usize| {
            let endpoint = &self.endpoints[index];
            let is_available = is_panic || self.is_available(endpoint);
            (is_available && may(index)).then(|| f64::from(endpoint.in_flight() + 1) / f64::from(self.spec.endpoints[index].weight.get()))
        };
        match self.spec.balancer {
            Balancer::LeastRequest => balance::least_request(self.endpoints.len(), first, second, cost),
            Balancer::RoundRobin => balance::round_robin(self.endpoints.len(), self.counters.turn.fetch_add(1, Ordering::Relaxed), cost),
        }
    }

    /// Without a check, what was once found out no longer counts.
    fn is_available(&self, endpoint: &EndpointState) -> bool {
        self.spec.check.is_none() || endpoint.health() != Health::Unhealthy
    }

    /// Whether health is ignored now.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.counters.is_panicking.load(Ordering::Relaxed)
    }

    /// Looks anew whether health is to be ignored; the answer if it changed.
    pub fn review_panic(&self) -> Option<bool> {
        let total = self.endpoints.len();
        let available = self.endpoints.iter().filter(|endpoint| self.is_available(endpoint)).count();
        let is_panic = balance::is_panic(available, total, self.spec.panic_threshold);
        (self.counters.is_panicking.swap(is_panic, Ordering::Relaxed) != is_panic).then_some(is_panic)
    }
}

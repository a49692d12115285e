//! State that all requests share and that survives a policy reload.
//!
//! This module decides which state a policy set uses. A policy or backend that keeps its name,
//! and an endpoint that keeps its address, keeps its state over any number of reloads. The
//! state is stored under that identity in [`registry`]. Each request pins one
//! [`active_policy::ActivePolicy`], which joins the compiled policies with their state.
//!
//! The decisions themselves are pure functions and state machines in [`crate::resilience`]. The
//! types here put locks around them. Such a lock covers one call and is never held over an
//! `.await`. The module opens no connections and runs no tasks.

pub mod active_policy;
mod atomic_instant;
pub mod instance;
pub mod policies;
pub mod registry;
pub mod table;
pub mod topology;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    policy::snapshot::{Discovery, EndpointSpec},
    resilience::capacity::{self, CapacityForecast, ObservedLoad},
    state::{
        active_policy::ActivePolicy,
        instance::{
            capacity::LoadHistory, command::Command, drain::DrainState, lifecycle::Lifecycle,
            memory::MemoryBudget, protection::ProtectionState, replicas::Replicas,
        },
        registry::Registry,
        topology::tls::TlsStore,
    },
    telemetry::Telemetry,
};

/// Maximum number of queued commands. Further commands are rejected: the admin API responds
/// with 503 and `Retry-After: 1`.
const MAX_QUEUED_COMMANDS: usize = 16;

/// State of one instance, shared by the data plane, the admin server and the control tasks.
#[derive(Debug)]
pub struct State {
    /// Policies in force, joined with their state. A request loads them once; a reload replaces
    /// them.
    pub active_policy: ArcSwap<ActivePolicy>,
    /// Readiness, startup and worker liveness of this instance.
    pub lifecycle: Lifecycle,
    /// Requests in flight, and the stage of the drain.
    pub drain: Arc<DrainState>,
    /// Load of the last ten seconds, from which the capacity forecast is computed.
    pub load_history: LoadHistory,
    /// Addresses of this instance, which tell it apart from the other replicas of its service.
    pub replicas: Replicas,
    /// Random hash seed for the keys of local rate limits. Clients cannot choose colliding
    /// keys.
    pub rate_limit_hasher: ahash::RandomState,
    /// Overload level of the instance, derived from its resource signals.
    pub protection: ProtectionState,
    /// Bytes that the data plane holds, and the level of memory pressure.
    pub memory: MemoryBudget,
    /// Receiver of all events, from which logs and metrics derive.
    pub telemetry: Arc<Telemetry>,
    /// TLS configurations, built from the latest valid content of the certificate files.
    pub tls: TlsStore,
    /// Sender of commands to the control loop, with a queue of 16 commands.
    pub commands: mpsc::Sender<Command>,
    /// State by identity. The lock serializes the updates of `active_policy` by reloads and by
    /// discovery.
    registry: Mutex<Registry>,
}

impl State {
    /// Creates a state with an empty policy set, and the receiver of its commands.
    ///
    /// `memory` is the memory budget.
    /// `zone` is the availability zone of this instance; `None` if it is not configured.
    #[must_use]
    pub fn new(
        telemetry: Arc<Telemetry>,
        memory: MemoryBudget,
        zone: Option<Arc<str>>,
        now: std::time::Instant,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, command_receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let state = Arc::new(Self {
            active_policy: ArcSwap::from_pointee(ActivePolicy::empty()),
            lifecycle: Lifecycle::new(telemetry.clone(), now),
            drain: Arc::new(DrainState::new(now)),
            load_history: LoadHistory::default(),
            replicas: Replicas::default(),
            memory,
            protection: ProtectionState::default(),
            rate_limit_hasher: ahash::RandomState::new(),
            registry: Mutex::new(Registry::new(telemetry.clone(), zone, now)),
            telemetry,
            tls: TlsStore::default(),
            commands,
        });
        (state, command_receiver)
    }

    /// Activates a policy set and returns its generation.
    ///
    /// A policy, backend or endpoint that keeps its identity keeps its state. Requests in
    /// flight continue with the policy set that they loaded.
    pub fn apply(
        &self,
        snapshot: Arc<crate::policy::snapshot::PolicySnapshot>,
        now: std::time::Instant,
    ) -> u64 {
        let mut registry = self.registry.lock();
        let generation = self.active_policy.load().generation + 1;
        let active_policy = registry.build_active_policy(snapshot, generation, now);
        self.active_policy.store(Arc::new(active_policy));
        generation
    }

    /// Records a sample of the current load; called once per second.
    pub fn record_load(&self, now: std::time::Instant) {
        self.load_history
            .record_load(&self.drain, &self.active_policy.load(), now);
    }

    /// Returns the observed load, and the forecast for the other replicas without this
    /// instance.
    #[must_use]
    pub fn forecast_capacity(&self, now: std::time::Instant) -> (ObservedLoad, CapacityForecast) {
        let active_policy = self.active_policy.load();
        let observed = self.load_history.observe(&self.drain, &active_policy, now);
        let others = self.replicas.count_available_others(&active_policy);
        let forecast = capacity::forecast_without_this_instance(&observed, others);
        (observed, forecast)
    }

    /// Activates the endpoints that discovery found for a backend, and returns whether they
    /// changed.
    ///
    /// `source` is where they were found. Endpoints from a source that the policy no longer
    /// names are ignored. The policies and the generation stay the same.
    pub fn apply_discovered_endpoints(
        &self,
        backend: &Arc<str>,
        source: &Discovery,
        endpoints: Vec<EndpointSpec>,
        now: std::time::Instant,
    ) -> bool {
        let mut registry = self.registry.lock();
        let current = self.active_policy.load();
        if !registry.record_discovered_endpoints(backend, source, endpoints) {
            return false;
        }
        let updated =
            registry.build_active_policy(current.snapshot.clone(), current.generation, now);
        drop(current);
        self.active_policy.store(Arc::new(updated));
        true
    }
}

//! Everything that outlives a request and survives a reload, and every lock.
//!
//! A request pins one [`active_policy::Live`]: the compiled policies of the moment, joined with the state that belongs to them. State is
//! kept by identity in [`registry::Registry`]: what kept its name keeps its history over any number of reloads. Locks are here
//! only, each around one call of a pure machine and never over an `.await`.

pub mod active_policy;
pub mod instance;
pub mod policies;
pub mod registry;
pub mod topology;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::{
    policy::snapshot::{Discovery, EndpointSpec},
    state::{
        active_policy::ActivePolicy,
        instance::{
            capacity::LoadHistory, command::Command, drain::DrainState, lifecycle::Lifecycle,
            protection::ProtectionState, replicas::Replicas,
        },
        registry::Registry,
        topology::tls::TlsStore,
    },
    telemetry::Telemetry,
};

/// Wishes that may wait; who has more is told to come back.
const MAX_QUEUED_COMMANDS: usize = 16;

/// What all parts share.
#[derive(Debug)]
pub struct State {
    /// What is in force; readers take it once per request, a reload replaces it.
    pub active_policy: ArcSwap<ActivePolicy>,
    /// Whether it is ready.
    pub lifecycle: Lifecycle,
    /// What is in flight, and how far it is on its way out.
    pub drain: DrainState,
    /// What it had to do in the last seconds.
    pub load_history: LoadHistory,
    /// Which of the instances of the service it is.
    pub replicas: Replicas,
    /// The secret under which the keys of rate limits are hashed.
    pub rate_limit_hasher: ahash::RandomState,
    /// How short of resources the instance is.
    pub protection: ProtectionState,
    /// The one place that events are told to.
    pub telemetry: Arc<Telemetry>,
    /// What the certificate files held when they were last read well.
    pub tls: TlsStore,
    /// Where this instance is, if it was told.
    pub zone: Option<Arc<str>>,
    /// Wishes to the background tasks.
    pub commands: mpsc::Sender<Command>,
    /// State by identity. Guards the joining of policies with their state, at a reload and nowhere else.
    registry: Mutex<Registry>,
}

impl State {
    /// Makes a state in which nothing is in force yet, and the end at which wishes arrive.
    #[must_use]
    pub fn new(
        telemetry: Arc<Telemetry>,
        zone: Option<Arc<str>>,
        now: std::time::Instant,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, command_receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let state = Arc::new(Self {
            active_policy: ArcSwap::from_pointee(ActivePolicy::empty()),
            lifecycle: Lifecycle::new(now),
            drain: DrainState::new(now),
            load_history: LoadHistory::default(),
            replicas: Replicas::default(),
            protection: ProtectionState::default(),
            rate_limit_hasher: ahash::RandomState::new(),
            telemetry,
            tls: TlsStore::default(),
            zone,
            commands,
            registry: Mutex::new(Registry::default()),
        });
        (state, command_receiver)
    }

    /// Puts a set of policies in force, with the state of all that kept its name; the generation.
    pub fn apply(
        &self,
        snapshot: Arc<crate::policy::snapshot::PolicySnapshot>,
        now: std::time::Instant,
    ) -> u64 {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.active_policy.load().generation + 1;
        let active_policy = registry.build_active_policy(
            snapshot,
            generation,
            &self.telemetry,
            self.zone.as_deref(),
            now,
        );
        self.active_policy.store(Arc::new(active_policy));
        generation
    }

    /// Puts the endpoints in force that discovery found of a backend where it looked; whether that changed anything. The policies stay
    /// as they are.
    pub fn apply_discovered_endpoints(
        &self,
        backend: &Arc<str>,
        source: &Discovery,
        endpoints: Vec<EndpointSpec>,
        now: std::time::Instant,
    ) -> bool {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.active_policy.load();
        if !registry.record_discovered_endpoints(backend, source, endpoints) {
            return false;
        }
        let updated = registry.build_active_policy(
            current.snapshot.clone(),
            current.generation,
            &self.telemetry,
            self.zone.as_deref(),
            now,
        );
        drop(current);
        self.active_policy.store(Arc::new(updated));
        true
    }
}

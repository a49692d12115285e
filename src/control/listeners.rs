//! The listeners of the moment, and how they follow a new set of policies.
//!
//! New sockets are bound first: if one cannot be, nothing has changed. A listener that keeps its address keeps its socket and its
//! connections, whatever else about it changes, its name included. One that is gone stops accepting; what it serves runs on.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    policy::snapshot::{ListenerSpec, Snapshot},
    proxy::{
        listener::{Bound, Listening},
        worker::WorkerHandle,
    },
    state::State,
    telemetry::event::Event,
};

/// The listeners of an instance.
#[derive(Debug)]
pub struct Listeners {
    workers: Vec<WorkerHandle>,
    state: Arc<State>,
    /// By name; guards the following of a new set.
    listening: Mutex<HashMap<Arc<str>, Listening>>,
}

/// A socket cannot be bound.
#[derive(Debug)]
pub struct CannotBind {
    /// The listener.
    pub listener: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
    /// Why.
    pub error: std::io::Error,
}

impl std::fmt::Display for CannotBind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the listener `{}` cannot be bound to {}: {}", self.listener, self.address, self.error)
    }
}

impl std::error::Error for CannotBind {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What a new set needs, with its new sockets bound.
#[derive(Debug)]
pub(super) struct Plan {
    /// Listeners to go on with: the name they have now, and what they follow from now on.
    kept: Vec<(Arc<str>, ListenerSpec)>,
    bound: Vec<(Bound, ListenerSpec)>,
}

impl Listeners {
    /// Makes a set without listeners.
    #[must_use]
    pub fn new(workers: Vec<WorkerHandle>, state: Arc<State>) -> Self {
        Self { workers, state, listening: Mutex::default() }
    }

    /// Binds what a new set needs and does not have.
    pub(super) fn prepare(&self, snapshot: &Snapshot) -> Result<Plan, CannotBind> {
        let listening = self.lock();
        let mut plan = Plan { kept: Vec::new(), bound: Vec::new() };
        for spec in &snapshot.listeners {
            let same_name = listening.get(&spec.name).filter(|now| now.spec().address == spec.address);
            let same_address = || listening.values().find(|now| spec.address.port() != 0 && now.spec().address == spec.address);
            if let Some(now) = same_name.or_else(same_address) {
                plan.kept.push((now.spec().name.clone(), spec.clone()));
                continue;
            }
            let bound = Bound::bind(spec.address).map_err(|error| CannotBind { listener: spec.name.clone(), address: spec.address, error })?;
            plan.bound.push((bound, spec.clone()));
        }
        Ok(plan)
    }

    /// Follows a prepared set.
    pub(super) fn follow(&self, plan: Plan) {
        let mut listening = self.lock();
        let mut next = HashMap::new();
        for (name, spec) in plan.kept {
            if let Some(kept) = listening.remove(&name) {
                kept.reconfigure(spec.clone());
                next.insert(spec.name, kept);
            }
        }
        for (name, gone) in listening.drain() {
            gone.close();
            self.state.telemetry.emit(Event::ListenerClosed { listener: name });
        }
        for (bound, spec) in plan.bound {
            let name = spec.name.clone();
            let address = bound.address().to_string();
            match bound.listen(spec, &self.workers, self.state.lifecycle.listener_connections(&name)) {
                Ok(new) => {
                    self.state.telemetry.emit(Event::ListenerBound { listener: name.clone(), address });
                    next.insert(name, new);
                }
                Err(error) => tracing::error!("listener {name}: {error}"),
            }
        }
        *listening = next;
    }

    /// Takes no more connections anywhere.
    pub(super) fn close_all(&self) {
        for listening in self.lock().values() {
            listening.close();
        }
    }

    /// The real address of a listener.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.lock().get(name).map(|listening| listening.address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

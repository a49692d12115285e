//! The listeners of the moment, and how they follow a new set of policies.
//!
//! New sockets are bound first: if one cannot be, nothing has changed. A listener that keeps its address keeps its socket and its
//! connections, whatever else about it changes, its name included. One that is gone stops accepting; what it serves runs on.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    listener::{Bound, Closing, Listening},
    worker::WorkerHandle,
};
use crate::{
    policy::{
        document::Direction,
        snapshot::{ListenerSpec, Snapshot},
    },
    state::{
        State,
        listening::{BoundSocket, CannotBind, Inheritance, Inherited, ListenerSet},
    },
    telemetry::event::Event,
};

/// The listeners of an instance.
#[derive(Debug)]
pub struct Listeners {
    workers: Vec<WorkerHandle>,
    state: Arc<State>,
    /// Sockets that are bound already.
    inherited: Arc<Inherited>,
    /// By name; guards the following of a new set.
    listening: Mutex<HashMap<Arc<str>, Listening>>,
}

/// What a new set needs, with its new sockets bound.
#[derive(Default)]
struct Plan {
    /// Listeners to go on with: the name they have now, and what they follow from now on.
    kept: Vec<(Arc<str>, ListenerSpec)>,
    bound: Vec<(Bound, ListenerSpec)>,
}

impl Listeners {
    /// Makes a set without listeners.
    #[must_use]
    pub fn new(workers: Vec<WorkerHandle>, state: Arc<State>, inherited: Arc<Inherited>) -> Self {
        Self {
            workers,
            state,
            inherited,
            listening: Mutex::default(),
        }
    }

    /// The real address of a listener.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.lock().get(name).map(|listening| listening.address)
    }

    fn prepare(
        &self,
        listening: &HashMap<Arc<str>, Listening>,
        snapshot: &Snapshot,
    ) -> Result<Plan, CannotBind> {
        let mut plan = Plan::default();
        for spec in &snapshot.listeners {
            let same_name = listening
                .get(&spec.name)
                .filter(|now| now.spec().address == spec.address);
            let same_address = || {
                listening
                    .values()
                    .find(|now| spec.address.port() != 0 && now.spec().address == spec.address)
            };
            if let Some(now) = same_name.or_else(same_address) {
                plan.kept.push((now.spec().name.clone(), spec.clone()));
                continue;
            }
            let bound = match self.inherited.take(&owner(&spec.name), spec.address) {
                Some(socket) => Bound::adopt(socket, self.workers.len()),
                None => Bound::bind(spec.address, self.workers.len()),
            };
            let bound = bound.map_err(|error| CannotBind {
                listener: spec.name.clone(),
                address: spec.address,
                error,
            })?;
            plan.bound.push((bound, spec.clone()));
        }
        Ok(plan)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Listening>> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn owner(listener: &str) -> String {
    format!("listener {listener}")
}

impl ListenerSet for Listeners {
    fn follow(&self, snapshot: &Snapshot, apply: &mut dyn FnMut()) -> Result<(), CannotBind> {
        let mut listening = self.lock();
        let plan = self.prepare(&listening, snapshot)?;
        apply();
        let mut next = HashMap::new();
        for (name, spec) in plan.kept {
            if let Some(kept) = listening.remove(&name) {
                kept.reconfigure(spec.clone());
                next.insert(spec.name, kept);
            }
        }
        for (name, gone) in listening.drain() {
            gone.reach(Closing::Closed);
            self.state
                .telemetry
                .emit(Event::ListenerClosed { listener: name });
        }
        for (bound, spec) in plan.bound {
            let (name, address) = (spec.name.clone(), bound.address().to_string());
            next.insert(
                name.clone(),
                bound.listen(spec, &self.workers, &self.state, &self.inherited.gate()),
            );
            self.state.telemetry.emit(Event::ListenerBound {
                listener: name,
                address,
            });
        }
        let inbound = next
            .values()
            .filter(|listening| listening.spec().direction == Direction::Inbound);
        self.state
            .replicas
            .reached_at(inbound.map(|listening| listening.address).collect());
        *listening = next;
        Ok(())
    }

    fn sockets(&self) -> io::Result<Vec<BoundSocket>> {
        let mut sockets = Vec::new();
        for listening in self.lock().values() {
            let spec = listening.spec();
            sockets.extend(listening.socket()?.map(|socket| BoundSocket {
                owner: owner(&spec.name),
                asked: spec.address,
                socket,
            }));
        }
        Ok(sockets)
    }

    fn inheritance(&self) -> Inheritance {
        let listening = self.lock();
        match listening
            .values()
            .filter(|listening| listening.is_inherited)
            .count()
        {
            0 => Inheritance::None,
            count if count == listening.len() => Inheritance::All,
            _ => Inheritance::Some,
        }
    }

    fn stop_accepting(&self) {
        self.lock()
            .values()
            .for_each(|listening| listening.reach(Closing::Stopped));
    }

    fn close(&self) {
        self.lock()
            .values()
            .for_each(|listening| listening.reach(Closing::Closed));
    }
}

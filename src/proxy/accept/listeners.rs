//! The active listeners, and how a policy reload changes them.
//!
//! A reload first binds the sockets that are missing. If one cannot be bound, nothing changes.
//! A listener that keeps its address keeps its socket and its connections, even if its name or
//! other settings change. A listener that the policy no longer contains stops accepting, and
//! its requests in flight continue.
//!
//! The control tasks call this module through [`ListenerSet`], for a reload, a drain and a
//! handover. It does not decide when these happen.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::{
        document::Direction,
        snapshot::{ListenerSpec, PolicySnapshot},
    },
    proxy::{
        accept::{
            connection_table::ConnectionTable,
            listener::{ActiveListener, BoundListener},
            listener_context::{AcceptingWorker, ListenerState},
            memory_relief,
        },
        upstream::worker::WorkerHandle,
    },
    state::{
        State,
        instance::listener_sockets::{
            BindError, BoundSocket, InheritedShare, InheritedSockets, ListenerSet,
        },
    },
    telemetry::event::Event,
};

/// Active listeners of an instance.
#[derive(Debug)]
pub struct Listeners {
    workers: Vec<WorkerHandle>,
    /// What the accept loops of each worker share.
    accepting_workers: Vec<Arc<AcceptingWorker>>,
    state: Arc<State>,
    /// Sockets that another process bound. A listener takes its socket from here, if there is
    /// one.
    inherited: Arc<InheritedSockets>,
    /// Active listeners by name. The lock is held for a whole reload.
    active: Mutex<HashMap<Arc<str>, ActiveListener>>,
}

/// Changes for a new set of listeners, with its new sockets already bound.
#[derive(Default)]
struct ListenerPlan {
    /// Listeners that keep their socket: the current name, and the new specification.
    retained: Vec<(Arc<str>, ListenerSpec)>,
    /// Listeners with a new or inherited socket, and their specification.
    newly_bound: Vec<(BoundListener, ListenerSpec)>,
}

impl Listeners {
    /// Creates an empty set. The first call of [`ListenerSet::reconcile`] fills it.
    #[must_use]
    pub fn new(
        workers: Vec<WorkerHandle>,
        state: Arc<State>,
        inherited: Arc<InheritedSockets>,
    ) -> Self {
        let start_relief = |handle: &WorkerHandle| {
            let (worker, table) = (handle.worker.clone(), Arc::<ConnectionTable>::default());
            let relief = memory_relief::relieve_memory(worker.clone(), table.clone());
            handle.runtime.spawn(relief);
            Arc::new(AcceptingWorker { worker, table })
        };
        Self {
            accepting_workers: workers.iter().map(start_relief).collect(),
            workers,
            state,
            inherited,
            active: Mutex::default(),
        }
    }

    /// Returns the local address of a listener, with its actual port; `None` if there is no
    /// listener with this name.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.lock().get(name).map(|active| active.address)
    }

    /// Matches the listeners of a snapshot to the active ones, and binds the sockets that are
    /// missing.
    ///
    /// A listener matches by name and address, or else by address alone. With port 0 an address
    /// is not unique, so the name must match as well.
    ///
    /// # Errors
    /// If a socket cannot be bound.
    fn bind_new_listeners(
        &self,
        active: &HashMap<Arc<str>, ActiveListener>,
        snapshot: &PolicySnapshot,
    ) -> Result<ListenerPlan, BindError> {
        let mut plan = ListenerPlan::default();
        for spec in &snapshot.listeners {
            let same_name = active
                .get(&spec.name)
                .filter(|existing| existing.spec().address == spec.address);
            let same_address = || {
                active.values().find(|existing| {
                    spec.address.port() != 0 && existing.spec().address == spec.address
                })
            };
            if let Some(existing) = same_name.or_else(same_address) {
                plan.retained
                    .push((existing.spec().name.clone(), spec.clone()));
                continue;
            }
            let new_listener = match self.inherited.take(&owner_name(&spec.name), spec.address) {
                Some(socket) => BoundListener::from_inherited(socket, self.workers.len()),
                None => BoundListener::bind(spec.address, self.workers.len()),
            };
            let new_listener = new_listener.map_err(|error| BindError {
                listener: spec.name.clone(),
                address: spec.address,
                error,
            })?;
            plan.newly_bound.push((new_listener, spec.clone()));
        }
        Ok(plan)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, ActiveListener>> {
        self.active.lock()
    }
}

/// Returns the owner under which a handover passes the socket of a listener.
fn owner_name(listener: &str) -> String {
    format!("listener {listener}")
}

impl ListenerSet for Listeners {
    fn reconcile(
        &self,
        snapshot: &PolicySnapshot,
        apply: &mut dyn FnMut(),
    ) -> Result<(), BindError> {
        let mut active = self.lock();
        let plan = self.bind_new_listeners(&active, snapshot)?;
        apply();
        let mut active_next = HashMap::new();
        for (name, spec) in plan.retained {
            if let Some(retained) = active.remove(&name) {
                retained.reconfigure(spec.clone());
                active_next.insert(spec.name, retained);
            }
        }
        for (name, removed) in active.drain() {
            removed.advance_to(ListenerState::Closed);
            self.state
                .telemetry
                .emit(Event::ListenerClosed { listener: name });
        }
        for (new_listener, spec) in plan.newly_bound {
            let (name, address) = (spec.name.clone(), new_listener.address().to_string());
            active_next.insert(
                name.clone(),
                new_listener.listen(
                    spec,
                    self.workers.iter().zip(&self.accepting_workers),
                    &self.state,
                    &self.inherited.subscribe_accept_scope(),
                ),
            );
            self.state.telemetry.emit(Event::ListenerBound {
                listener: name,
                address,
            });
        }
        let inbound = active_next
            .values()
            .filter(|active| active.spec().direction == Direction::Inbound);
        self.state
            .replicas
            .set_own_addresses(inbound.map(|active| active.address).collect());
        *active = active_next;
        Ok(())
    }

    fn duplicate_sockets(&self) -> io::Result<Vec<BoundSocket>> {
        let mut sockets = Vec::new();
        for active in self.lock().values() {
            let spec = active.spec();
            sockets.extend(active.try_clone_socket()?.map(|socket| BoundSocket {
                owner: owner_name(&spec.name),
                requested_address: spec.address,
                socket,
            }));
        }
        Ok(sockets)
    }

    fn inherited_share(&self) -> InheritedShare {
        let active = self.lock();
        match active.values().filter(|active| active.is_inherited).count() {
            0 => InheritedShare::None,
            count if count == active.len() => InheritedShare::All,
            _ => InheritedShare::Some,
        }
    }

    fn stop_accepting(&self) {
        self.lock()
            .values()
            .for_each(|active| active.advance_to(ListenerState::Draining));
    }

    fn close(&self) {
        self.lock()
            .values()
            .for_each(|active| active.advance_to(ListenerState::Closed));
    }
}

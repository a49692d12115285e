//! Idle connections to endpoints, of one worker.
//!
//! A worker's connections live in its runtime, so each worker has a pool of its own, and no connection ever wakes another
//! thread. The connection that was used last is used first: the ones below it grow old and are closed, so that the number of
//! open connections follows the load. An idle connection costs no task and no timer; it is looked at when it is taken, and by
//! a sweep once a second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use pingora::protocols::Stream;

use super::wire::Wire;
use crate::state::endpoint::{ConnectionGuard, EndpointState};

/// Idle connections per endpoint and worker; more are closed.
const MAX_IDLE: usize = 128;

/// A connection to an endpoint.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) stream: Stream,
    pub(super) wire: Arc<Wire>,
    pub(super) guard: ConnectionGuard,
}

#[derive(Debug)]
struct Kept {
    connection: Idle,
    since: Instant,
}

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// By the endpoint's id; guards single takes and puts.
    idle: Mutex<HashMap<u64, Endpoint>>,
}

#[derive(Debug)]
struct Endpoint {
    state: Arc<EndpointState>,
    connections: Vec<Kept>,
}

impl Pool {
    /// Takes the connection that was used last and is still good.
    pub(super) fn take(&self, endpoint: &EndpointState, is_repeatable: bool, now: Instant) -> Option<Idle> {
        let mut idle = self.lock();
        let connections = &mut idle.get_mut(&endpoint.id)?.connections;
        // Younger ones are at the end: if the last is too old for this request, all are.
        let longest = endpoint.reusable_idle(is_repeatable, now);
        while let Some(kept) = connections.pop_if(|kept| now.saturating_duration_since(kept.since) <= longest) {
            if kept.connection.wire.is_idle_and_open() {
                return Some(kept.connection);
            }
            endpoint.learn_idle_close(now.saturating_duration_since(kept.since), now);
        }
        None
    }

    /// Keeps a connection that is clean.
    pub(super) fn put(&self, endpoint: &Arc<EndpointState>, connection: Idle, now: Instant) {
        if endpoint.is_retired() {
            return;
        }
        let mut idle = self.lock();
        let kept = idle.entry(endpoint.id).or_insert_with(|| Endpoint { state: endpoint.clone(), connections: Vec::new() });
        if kept.connections.len() == MAX_IDLE {
            kept.connections.remove(0);
        }
        kept.connections.push(Kept { connection, since: now });
    }

    /// Closes one idle connection to another endpoint of the same backend, to make room under its cap.
    pub(super) fn evict_one(&self, endpoint: &EndpointState) -> bool {
        let mut idle = self.lock();
        let same_backend = idle.values_mut().filter(|other| Arc::ptr_eq(&other.state.counters, &endpoint.counters));
        let oldest = same_backend.filter(|other| !other.connections.is_empty()).min_by_key(|other| other.connections[0].since);
        oldest.map(|other| other.connections.remove(0)).is_some()
    }

    /// Closes what is too old, was closed by the endpoint, or leads to an endpoint that is no longer there.
    pub(super) fn sweep(&self, now: Instant) {
        let mut idle = self.lock();
        idle.retain(|_, endpoint| {
            if endpoint.state.is_retired() {
                return false;
            }
            let longest = endpoint.state.reusable_idle(true, now);
            endpoint.connections.retain(|kept| {
                let age = now.saturating_duration_since(kept.since);
                let is_open = kept.connection.wire.is_idle_and_open();
                if !is_open {
                    endpoint.state.learn_idle_close(age, now);
                }
                is_open && age <= longest
            });
            !endpoint.connections.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Endpoint>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

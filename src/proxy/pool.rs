//! Idle connections to endpoints, of one worker.
//!
//! A worker's connections live in its runtime, so each worker has a pool of its own, and no connection ever wakes another
//! thread. The connection that was used last is used first: the ones below it grow old and are closed, so that the number of
//! open connections follows the load. An idle connection costs no task and no timer; it is looked at when it is taken, and by
//! a sweep once a second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pingora::protocols::Stream;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::http2::client::{Exchange, Shared};
use crate::{
    state::endpoint::{ConnectionGuard, EndpointState, TooMany},
    transport::wire::Wire,
};

/// Idle connections per endpoint and worker; more are closed.
const MAX_IDLE: usize = 128;

/// How long a connection of HTTP/2 is kept without a request. Its end is announced (GOAWAY), so that there is no race to lose.
const MAX_IDLE_HTTP2: Duration = Duration::from_mins(1);

/// A connection to an endpoint.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) stream: Stream,
    pub(super) wire: Arc<Wire>,
    pub(super) guard: ConnectionGuard,
    /// Of the certificates that it was made under; 0 without TLS.
    pub(super) generation: u64,
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
    /// Connections of HTTP/2 by the endpoint's id; guards single lookups.
    shared: Mutex<HashMap<u64, Arc<SharedConnections>>>,
}

/// The connections of HTTP/2 to one endpoint.
#[derive(Debug)]
pub(super) struct SharedConnections {
    state: Arc<EndpointState>,
    /// Guards single lookups and additions.
    connections: Mutex<Vec<Shared>>,
    /// Who makes a connection has it, so that one is made at a time.
    turn: Semaphore,
}

impl SharedConnections {
    /// A place on one that can take one more request, made under certificates of this generation.
    pub(super) fn place(&self, generation: u64, now: Instant) -> Option<Exchange> {
        let mut connections = lock(&self.connections);
        connections.retain(|shared| shared.is_open(generation));
        connections
            .iter()
            .find(|shared| shared.is_free(generation))
            .map(|shared| shared.exchange(now))
    }

    /// Ends one that has no request; says whether there was one.
    fn evict_one(&self) -> bool {
        let mut connections = lock(&self.connections);
        let idle = connections
            .iter()
            .position(|shared| shared.idle_since().is_some());
        idle.map(|position| connections.swap_remove(position).make_room())
            .is_some()
    }

    /// Adds a new one; that of an endpoint that has left is used once.
    pub(super) fn add(&self, shared: Shared) {
        if !self.state.is_retired() {
            lock(&self.connections).push(shared);
        }
    }

    /// Waits for the turn to make one.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turn.acquire().await.ok()
    }
}

#[derive(Debug)]
struct Endpoint {
    state: Arc<EndpointState>,
    connections: Vec<Kept>,
}

impl Pool {
    /// Takes the connection that was used last and is still good.
    pub(super) fn take(
        &self,
        endpoint: &EndpointState,
        is_repeatable: bool,
        generation: u64,
        now: Instant,
    ) -> Option<Idle> {
        let mut idle = self.lock();
        let connections = &mut idle.get_mut(&endpoint.id)?.connections;
        // Younger ones are at the end: if the last is too old for this request, all are.
        let longest = endpoint.reusable_idle(is_repeatable, now);
        connections.retain(|kept| kept.connection.generation == generation);
        while let Some(kept) =
            connections.pop_if(|kept| now.saturating_duration_since(kept.since) <= longest)
        {
            if kept.connection.wire.is_idle_and_open() {
                return Some(kept.connection);
            }
            endpoint.learn_idle_close(now.saturating_duration_since(kept.since), now);
        }
        None
    }

    /// The connections of HTTP/2 to an endpoint.
    pub(super) fn shared(&self, endpoint: &Arc<EndpointState>) -> Arc<SharedConnections> {
        let mut shared = lock(&self.shared);
        let make = || {
            Arc::new(SharedConnections {
                state: endpoint.clone(),
                connections: Mutex::default(),
                turn: Semaphore::new(1),
            })
        };
        shared.entry(endpoint.id).or_insert_with(make).clone()
    }

    /// Keeps a connection that is clean.
    pub(super) fn put(&self, endpoint: &Arc<EndpointState>, connection: Idle, now: Instant) {
        if endpoint.is_retired() {
            return;
        }
        let mut idle = self.lock();
        let kept = idle.entry(endpoint.id).or_insert_with(|| Endpoint {
            state: endpoint.clone(),
            connections: Vec::new(),
        });
        if kept.connections.len() == MAX_IDLE {
            kept.connections.remove(0);
        }
        kept.connections.push(Kept {
            connection,
            since: now,
        });
    }

    /// Closes one idle connection to the same endpoint, or to any of the same backend, to make room under the bound that is reached.
    pub(super) fn evict_one(&self, endpoint: &EndpointState, reached: TooMany) -> bool {
        let makes_room = |other: &EndpointState| match reached {
            TooMany::OfEndpoint => other.id == endpoint.id,
            TooMany::OfBackend => Arc::ptr_eq(&other.counters, &endpoint.counters),
        };
        let mut idle = self.lock();
        let oldest = idle
            .values_mut()
            .filter(|other| makes_room(&other.state) && !other.connections.is_empty())
            .min_by_key(|other| other.connections[0].since);
        if oldest.map(|other| other.connections.remove(0)).is_some() {
            return true;
        }
        drop(idle);
        lock(&self.shared)
            .values()
            .any(|other| makes_room(&other.state) && other.evict_one())
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
        drop(idle);
        // A connection ends when nobody holds it any more and its last stream is through.
        lock(&self.shared).retain(|_, endpoint| {
            let mut connections = lock(&endpoint.connections);
            connections.retain(|shared| {
                !endpoint.state.is_retired()
                    && shared
                        .idle_since()
                        .is_none_or(|since| now.saturating_duration_since(since) <= MAX_IDLE_HTTP2)
            });
            !connections.is_empty() || !endpoint.state.is_retired()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Endpoint>> {
        lock(&self.idle)
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

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

use crate::{
    proxy::upstream::http2::{ClientStream, Http2Connection},
    state::topology::endpoint::{ConnectionGuard, ConnectionLimitReached, EndpointState},
    transport::queued_stream::ConnectionHandle,
};

/// Idle connections per endpoint and worker; more are closed.
const MAX_IDLE_PER_ENDPOINT: usize = 128;

/// How long a connection of HTTP/2 is kept without a request. Its end is announced (GOAWAY), so that there is no race to lose.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct PooledConnection {
    pub(crate) stream: Stream,
    pub(crate) handle: Arc<ConnectionHandle>,
    pub(crate) connection_guard: ConnectionGuard,
    /// Of the certificates that it was made under; 0 without TLS.
    pub(crate) certificate_generation: u64,
}

#[derive(Debug)]
struct IdleConnection {
    connection: PooledConnection,
    idle_since: Instant,
}

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct ConnectionPool {
    /// By the endpoint's id; guards single takes and puts.
    idle: Mutex<HashMap<u64, EndpointIdleConnections>>,
    /// Connections of HTTP/2 by the endpoint's id; guards single lookups.
    http2_connections: Mutex<HashMap<u64, Arc<EndpointHttp2Connections>>>,
}

/// The connections of HTTP/2 to one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointHttp2Connections {
    state: Arc<EndpointState>,
    /// Guards single lookups and additions.
    connections: Mutex<Vec<Http2Connection>>,
    /// Who makes a connection has it, so that one is made at a time.
    connect_permit: Semaphore,
}

impl EndpointHttp2Connections {
    /// A place on one that can take one more request, made under certificates of this generation.
    pub(crate) fn try_open_stream(
        &self,
        certificate_generation: u64,
        now: Instant,
    ) -> Option<ClientStream> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| connection.accepts_streams(certificate_generation));
        connections
            .iter()
            .find(|connection| connection.has_stream_capacity(certificate_generation))
            .map(|connection| connection.open_stream(now))
    }

    /// Ends one that has no request; says whether there was one.
    fn evict_idle_connection(&self) -> bool {
        let mut connections = lock(&self.connections);
        let idle = connections
            .iter()
            .position(|connection| connection.idle_since().is_some());
        idle.map(|position| connections.swap_remove(position).evict())
            .is_some()
    }

    /// Adds a new one; that of an endpoint that has left is used once.
    pub(crate) fn add(&self, connection: Http2Connection) {
        if !self.state.is_retired() {
            lock(&self.connections).push(connection);
        }
    }

    /// Waits for the turn to make one.
    pub(crate) async fn acquire_connect_permit(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.connect_permit.acquire().await.ok()
    }
}

#[derive(Debug)]
struct EndpointIdleConnections {
    state: Arc<EndpointState>,
    connections: Vec<IdleConnection>,
}

impl ConnectionPool {
    /// Takes the connection that was used last and is still good.
    pub(crate) fn take(
        &self,
        endpoint: &EndpointState,
        is_retryable: bool,
        certificate_generation: u64,
        now: Instant,
    ) -> Option<PooledConnection> {
        let mut idle = self.lock_idle();
        let connections = &mut idle.get_mut(&endpoint.id)?.connections;
        // Younger ones are at the end: if the last is too old for this request, all are.
        let max_idle = endpoint.max_reusable_idle(is_retryable, now);
        connections.retain(|idle_connection| {
            idle_connection.connection.certificate_generation == certificate_generation
        });
        while let Some(idle_connection) = connections.pop_if(|idle_connection| {
            now.saturating_duration_since(idle_connection.idle_since) <= max_idle
        }) {
            if idle_connection.connection.handle.is_idle_and_open() {
                return Some(idle_connection.connection);
            }
            endpoint.record_idle_close(
                now.saturating_duration_since(idle_connection.idle_since),
                now,
            );
        }
        None
    }

    /// The connections of HTTP/2 to an endpoint.
    pub(crate) fn http2_connections(
        &self,
        endpoint: &Arc<EndpointState>,
    ) -> Arc<EndpointHttp2Connections> {
        let mut connections_by_endpoint = lock(&self.http2_connections);
        let make = || {
            Arc::new(EndpointHttp2Connections {
                state: endpoint.clone(),
                connections: Mutex::default(),
                connect_permit: Semaphore::new(1),
            })
        };
        connections_by_endpoint
            .entry(endpoint.id)
            .or_insert_with(make)
            .clone()
    }

    /// Keeps a connection that is clean.
    pub(crate) fn put(
        &self,
        endpoint: &Arc<EndpointState>,
        connection: PooledConnection,
        now: Instant,
    ) {
        if endpoint.is_retired() {
            return;
        }
        let mut idle = self.lock_idle();
        let idle_connection = idle
            .entry(endpoint.id)
            .or_insert_with(|| EndpointIdleConnections {
                state: endpoint.clone(),
                connections: Vec::new(),
            });
        if idle_connection.connections.len() == MAX_IDLE_PER_ENDPOINT {
            idle_connection.connections.remove(0);
        }
        idle_connection.connections.push(IdleConnection {
            connection,
            idle_since: now,
        });
    }

    /// Closes one idle connection to the same endpoint, or to any of the same backend, to make room under the bound that is reached.
    pub(crate) fn evict_idle_connection(
        &self,
        endpoint: &EndpointState,
        reached_limit: ConnectionLimitReached,
    ) -> bool {
        let makes_room = |candidate: &EndpointState| match reached_limit {
            ConnectionLimitReached::Endpoint => candidate.id == endpoint.id,
            ConnectionLimitReached::Backend => Arc::ptr_eq(&candidate.counters, &endpoint.counters),
        };
        let mut idle = self.lock_idle();
        let oldest = idle
            .values_mut()
            .filter(|candidate| makes_room(&candidate.state) && !candidate.connections.is_empty())
            .min_by_key(|candidate| candidate.connections[0].idle_since);
        if oldest
            .map(|candidate| candidate.connections.remove(0))
            .is_some()
        {
            return true;
        }
        drop(idle);
        lock(&self.http2_connections)
            .values()
            .any(|candidate| makes_room(&candidate.state) && candidate.evict_idle_connection())
    }

    /// Closes what is too old, was closed by the endpoint, or leads to an endpoint that is no longer there.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut idle = self.lock_idle();
        idle.retain(|_, endpoint| {
            if endpoint.state.is_retired() {
                return false;
            }
            let max_idle = endpoint.state.max_reusable_idle(true, now);
            endpoint.connections.retain(|idle_connection| {
                let age = now.saturating_duration_since(idle_connection.idle_since);
                let is_open = idle_connection.connection.handle.is_idle_and_open();
                if !is_open {
                    endpoint.state.record_idle_close(age, now);
                }
                is_open && age <= max_idle
            });
            !endpoint.connections.is_empty()
        });
        drop(idle);
        // A connection ends when nobody holds it any more and its last stream is through.
        lock(&self.http2_connections).retain(|_, endpoint| {
            let mut connections = lock(&endpoint.connections);
            connections.retain(|connection| {
                !endpoint.state.is_retired()
                    && connection.idle_since().is_none_or(|since| {
                        now.saturating_duration_since(since) <= HTTP2_IDLE_TIMEOUT
                    })
            });
            !connections.is_empty() || !endpoint.state.is_retired()
        });
    }

    fn lock_idle(&self) -> MutexGuard<'_, HashMap<u64, EndpointIdleConnections>> {
        lock(&self.idle)
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

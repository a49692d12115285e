//! Idle connections of one worker to endpoints.
//!
//! The connections of a worker live in its runtime. Each worker therefore has its own pool, and
//! no connection ever wakes another thread. The most recently used connection is reused first:
//! the others grow old and are closed, so the number of open connections follows the load.
//!
//! An idle connection costs no task and no timer. It is checked when it is taken, and by a
//! sweep once a second. The pool does not open connections and does not enforce connection
//! limits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    proxy::upstream::{http2::Http2Connection, http2_stream::ClientStream},
    state::topology::endpoint::{ConnectionGuard, ConnectionLimitReached, EndpointState},
    transport::queued_stream::{ConnectionHandle, QueuedStream},
};

/// Maximum number of idle HTTP/1 connections per endpoint and worker. Beyond it, the oldest is
/// closed.
const MAX_IDLE_PER_ENDPOINT: usize = 128;

/// Time without a stream after which an HTTP/2 connection is closed.
///
/// It can be long, because a backend announces a close with GOAWAY. A request in a race with
/// the close is then known to be unprocessed.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// An HTTP/1 connection to an endpoint, between two requests.
#[derive(Debug)]
pub(crate) struct PooledConnection {
    pub(crate) stream: QueuedStream,
    pub(crate) handle: Arc<ConnectionHandle>,
    pub(crate) connection_guard: ConnectionGuard,
    /// Generation of the TLS material that the connection was opened with; 0 without TLS.
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
    /// Idle HTTP/1 connections by endpoint id. The lock guards single takes and puts.
    idle: Mutex<HashMap<u64, EndpointIdleConnections>>,
    /// HTTP/2 connections by endpoint id. The lock guards single lookups.
    http2_connections: Mutex<HashMap<u64, Arc<EndpointHttp2Connections>>>,
}

/// The HTTP/2 connections of one worker to one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointHttp2Connections {
    state: Arc<EndpointState>,
    /// Open connections, busy and idle. The lock guards single lookups and additions.
    connections: Mutex<Vec<Http2Connection>>,
    /// Single permit to open a connection, so that one is opened at a time.
    connect_permit: Semaphore,
}

impl EndpointHttp2Connections {
    /// Opens a stream on a connection with free capacity, if there is one.
    ///
    /// Connections with another TLS generation, or that accept no streams any more, are
    /// removed.
    pub(crate) fn try_open_stream(
        &self,
        certificate_generation: u64,
        now: Instant,
    ) -> Option<ClientStream> {
        let mut connections = self.connections.lock();
        connections.retain(|connection| connection.accepts_streams(certificate_generation));
        connections
            .iter()
            .find(|connection| connection.has_stream_capacity())
            .map(|connection| ClientStream::new(connection.acquire_stream(now)))
    }

    /// Closes one connection without streams and returns whether there was one.
    fn evict_idle_connection(&self) -> bool {
        let mut connections = self.connections.lock();
        let idle = connections
            .iter()
            .position(|connection| connection.idle_since().is_some());
        idle.map(|position| connections.swap_remove(position).evict())
            .is_some()
    }

    /// Adds a new connection. A connection to a retired endpoint is not retained and serves
    /// only its first stream.
    pub(crate) fn add(&self, connection: Http2Connection) {
        if !self.state.is_retired() {
            self.connections.lock().push(connection);
        }
    }

    /// Waits for the permit to open a connection.
    pub(crate) async fn acquire_connect_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so the result is always `Some`.
        self.connect_permit.acquire().await.ok()
    }
}

#[derive(Debug)]
struct EndpointIdleConnections {
    state: Arc<EndpointState>,
    connections: Vec<IdleConnection>,
}

impl ConnectionPool {
    /// Takes the most recently used idle connection that is open and not too old for the
    /// request.
    ///
    /// Connections with another TLS generation are closed. A connection that the endpoint has
    /// closed updates the endpoint's estimated idle timeout.
    pub(crate) fn take(
        &self,
        endpoint: &EndpointState,
        is_retryable: bool,
        certificate_generation: u64,
        now: Instant,
    ) -> Option<PooledConnection> {
        let mut idle = self.idle.lock();
        let connections = &mut idle.get_mut(&endpoint.id)?.connections;
        // The youngest connection is last: if it is too old for this request, all others are as
        // well.
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

    /// Returns the HTTP/2 connections to an endpoint, which all requests of this worker share.
    pub(crate) fn http2_connections(
        &self,
        endpoint: &Arc<EndpointState>,
    ) -> Arc<EndpointHttp2Connections> {
        let mut connections_by_endpoint = self.http2_connections.lock();
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

    /// Retains an idle connection for reuse, or closes it if its endpoint is retired.
    ///
    /// No message on the connection may be incomplete.
    pub(crate) fn put(
        &self,
        endpoint: &Arc<EndpointState>,
        connection: PooledConnection,
        now: Instant,
    ) {
        if endpoint.is_retired() {
            return;
        }
        let mut idle = self.idle.lock();
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

    /// Closes one idle connection to make room under a connection limit, and returns whether
    /// there was one.
    ///
    /// The connection is to the same endpoint or to any endpoint of its backend, depending on
    /// the limit.
    pub(crate) fn evict_idle_connection(
        &self,
        endpoint: &EndpointState,
        reached_limit: ConnectionLimitReached,
    ) -> bool {
        let makes_room = |candidate: &EndpointState| match reached_limit {
            ConnectionLimitReached::Endpoint => candidate.id == endpoint.id,
            ConnectionLimitReached::Backend => Arc::ptr_eq(&candidate.counters, &endpoint.counters),
        };
        let mut idle = self.idle.lock();
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
        self.http2_connections
            .lock()
            .values()
            .any(|candidate| makes_room(&candidate.state) && candidate.evict_idle_connection())
    }

    /// Closes idle connections that are too old, were closed by the endpoint, or lead to a
    /// retired endpoint.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut idle = self.idle.lock();
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
        // A dropped HTTP/2 connection closes once its last stream has ended.
        self.http2_connections.lock().retain(|_, endpoint| {
            let mut connections = endpoint.connections.lock();
            connections.retain(|connection| {
                !endpoint.state.is_retired()
                    && connection.idle_since().is_none_or(|since| {
                        now.saturating_duration_since(since) <= HTTP2_IDLE_TIMEOUT
                    })
            });
            !connections.is_empty() || !endpoint.state.is_retired()
        });
    }
}

//! State that a listener shares with its connections: the specification, the number of
//! connections, and the state of the listener.
//!
//! It enforces the maximum number of connections of a listener. It does not know sockets.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwap;

use crate::{
    policy::snapshot::ListenerSpec,
    proxy::{
        accept::connection_table::{ConnectionEntry, ConnectionTable},
        request::view::ClientIdentity,
        upstream::worker::Worker,
    },
    state::State,
    transport::queued_stream::QueuedStream,
};

/// State of a listener. A listener moves through the states in this order and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ListenerState {
    /// The listener accepts connections.
    Open,
    /// The listener accepts no connections. Each open connection closes after its next
    /// response.
    Draining,
    /// The listener accepts no connections, and idle connections close at once.
    Closed,
}

/// Worker that accepts client connections, and the table of its open ones.
#[derive(Debug)]
pub(crate) struct AcceptingWorker {
    pub(crate) worker: Arc<Worker>,
    pub(crate) table: Arc<ConnectionTable>,
}

/// Client connection whose protocol is known.
pub(crate) struct OpenConnection {
    /// Released when the connection closes.
    pub(crate) permit: ConnectionPermit,
    pub(crate) entry: ConnectionEntry,
    pub(crate) identity: ClientIdentity,
    pub(crate) stream: QueuedStream,
}

/// Data that a listener shares with its connections.
#[derive(Debug)]
pub(crate) struct ListenerContext {
    /// Specification in force. A policy reload replaces it while connections are open.
    pub(crate) spec: ArcSwap<ListenerSpec>,
    /// Number of open connections.
    pub(crate) connections: Arc<AtomicU32>,
    pub(crate) state: Arc<State>,
}

/// Permit for one connection of a listener. A drop releases it.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<ListenerContext>);

impl ConnectionPermit {
    /// Returns the data that the connection shares with its listener.
    pub(crate) fn listener_context(&self) -> &Arc<ListenerContext> {
        &self.0
    }

    /// Acquires a permit, or returns `None` if the listener has its maximum of connections.
    pub(crate) fn try_acquire(context: &Arc<ListenerContext>) -> Option<Self> {
        let max = context.spec.load().limits.max_connections;
        let acquired =
            context
                .connections
                .try_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < max).then_some(count + 1)
                });
        acquired.ok().map(|_| Self(context.clone()))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.state.drain.record_connection_end();
    }
}

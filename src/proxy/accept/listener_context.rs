//! What a listener and its connections share.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwap;

use crate::{policy::snapshot::ListenerSpec, state::State};

/// How far a listener is on its way out, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ListenerState {
    /// It takes connections.
    Open,
    /// It takes none. Each of those that are open ends with its next answer.
    Draining,
    /// Those that are idle end, too.
    Closed,
}

/// What the connections of a listener share.
#[derive(Debug)]
pub(crate) struct ListenerContext {
    pub(crate) spec: ArcSwap<ListenerSpec>,
    pub(crate) connections: Arc<AtomicU32>,
    pub(crate) state: Arc<State>,
}

/// A place among a listener's connections.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<ListenerContext>);

impl ConnectionPermit {
    /// What the connections of the listener share.
    pub(crate) fn listener_context(&self) -> &Arc<ListenerContext> {
        &self.0
    }

    /// Counts a connection, unless the listener has as many as it may.
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

//! What the background asks of the data plane: to follow a set of policies with its sockets.
//!
//! The background and the data plane do not know each other; they meet here.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use crate::policy::snapshot::Snapshot;

/// The sockets of an instance.
pub trait ListenerSet: fmt::Debug + Send + Sync {
    /// Binds what a new set needs and does not have, then calls `apply`, then lets the new listeners take requests and the old
    /// ones that are gone take no more.
    ///
    /// # Errors
    /// If a socket cannot be bound; then nothing has changed and `apply` was not called.
    fn follow(&self, snapshot: &Snapshot, apply: &mut dyn FnMut()) -> Result<(), CannotBind>;

    /// Takes no more connections; those that are open live on. For who has handed the sockets over.
    fn stop_accepting(&self);

    /// Takes the connections that wait, and no more, and closes those that are idle.
    fn close(&self);
}

/// A socket cannot be bound.
#[derive(Debug)]
pub struct CannotBind {
    /// The listener.
    pub listener: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
    /// Why.
    pub error: io::Error,
}

impl fmt::Display for CannotBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the listener `{}` cannot be bound to {}: {}", self.listener, self.address, self.error)
    }
}

impl std::error::Error for CannotBind {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

//! Listening sockets of the instance, as the control tasks see them.
//!
//! The control tasks and the data plane do not know each other. The data plane implements
//! [`ListenerSet`], and the control tasks call it for a reload, a drain and a handover. This
//! module also holds the sockets that another process bound, and publishes on which of them
//! connections are accepted. It does not accept connections itself.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::policy::snapshot::PolicySnapshot;

/// Listeners of an instance, implemented by the data plane.
pub trait ListenerSet: fmt::Debug + Send + Sync {
    /// Replaces the listeners by those of a new policy set.
    ///
    /// It first binds the sockets that are missing and calls `apply`. It then stops the
    /// listeners that the set no longer contains, and starts the new ones.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be bound. Nothing has changed then, and `apply` was
    /// not called.
    fn reconcile(
        &self,
        snapshot: &PolicySnapshot,
        apply: &mut dyn FnMut(),
    ) -> Result<(), BindError>;

    /// Returns a duplicate of each socket that accepts connections, for a successor process.
    ///
    /// # Errors
    /// Returns an error if the system provides no more file descriptors.
    fn duplicate_sockets(&self) -> io::Result<Vec<BoundSocket>>;

    /// Returns how many of the listening sockets another process bound.
    fn inherited_share(&self) -> InheritedShare;

    /// Stops accepting connections after a handover. Each open connection ends after its next
    /// response. Connections in the accept queue are left to the process that took over the
    /// sockets.
    fn stop_accepting(&self);

    /// Stops accepting connections and closes idle ones. Connections in the accept queue are
    /// accepted first, because closing the socket would reset them.
    fn close(&self);
}

/// Listening socket with its owner and its requested address.
#[derive(Debug)]
pub struct BoundSocket {
    /// Owner of the socket: `admin` or `listener NAME`; empty if a supervisor passed the
    /// socket.
    pub owner: String,
    /// Address that the configuration requests; with port 0 the system chooses a port.
    pub requested_address: SocketAddr,
    /// TCP socket in the listening state.
    pub socket: TcpListener,
}

/// Listening sockets that another process bound: a supervisor, or a predecessor that handed
/// them over.
#[derive(Debug)]
pub struct InheritedSockets {
    /// Sockets that no listener has taken yet; the lock covers one access.
    sockets: Mutex<Vec<BoundSocket>>,
    /// Sockets on which connections are accepted. On the others, connections wait in the accept
    /// queue, or the predecessor accepts them.
    accept_scope: watch::Sender<AcceptScope>,
}

/// Inherited sockets on which this instance accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcceptScope {
    /// It accepts connections on no inherited socket.
    None,
    /// It accepts connections only for outbound requests of the app.
    Outbound,
    /// It accepts connections on all inherited sockets.
    All,
}

/// Share of the listening sockets that another process bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InheritedShare {
    /// Another process bound none of the sockets.
    None,
    /// Another process bound some of the sockets, and this process the others.
    Some,
    /// Another process bound all of the sockets.
    All,
}

impl InheritedSockets {
    /// Creates the set with [`AcceptScope::None`], so that no connection is accepted yet.
    #[must_use]
    pub fn new(sockets: Vec<BoundSocket>) -> Self {
        Self {
            sockets: Mutex::new(sockets),
            accept_scope: watch::Sender::new(AcceptScope::None),
        }
    }

    /// Sets the sockets on which connections are accepted from now on.
    pub fn set_accept_scope(&self, accept_scope: AcceptScope) {
        self.accept_scope.send_replace(accept_scope);
    }

    /// Returns a receiver of the current scope and its changes.
    #[must_use]
    pub fn subscribe_accept_scope(&self) -> watch::Receiver<AcceptScope> {
        self.accept_scope.subscribe()
    }

    /// Takes the socket for a requested address out of the set, or returns `None`.
    ///
    /// For port 0 the owner must match as well, because several listeners can request that
    /// port.
    pub fn take(&self, owner: &str, requested_address: SocketAddr) -> Option<TcpListener> {
        let mut sockets = self.sockets.lock();
        let index = sockets.iter().position(|bound| {
            bound.requested_address == requested_address
                && (requested_address.port() != 0 || bound.owner == owner)
        })?;
        Some(sockets.swap_remove(index).socket)
    }

    /// Closes the sockets that no listener has taken, and returns their requested addresses.
    pub fn close_unclaimed(&self) -> Vec<SocketAddr> {
        self.sockets
            .lock()
            .drain(..)
            .map(|bound| bound.requested_address)
            .collect()
    }
}

/// Error for a listener whose socket cannot be bound.
#[derive(Debug)]
pub struct BindError {
    /// Name of the listener in the policy.
    pub listener: Arc<str>,
    /// Address that the listener requests.
    pub address: SocketAddr,
    /// Cause that the operating system reports.
    pub error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the listener `{}` cannot be bound to {}: {}",
            self.listener, self.address, self.error
        )
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

//! What the background asks of the data plane: to follow a set of policies with its sockets.
//!
//! The background and the data plane do not know each other; they meet here.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::policy::snapshot::PolicySnapshot;

/// The sockets of an instance.
pub trait ListenerSet: fmt::Debug + Send + Sync {
    /// Binds what a new set needs and does not have, then calls `apply`, then lets the new listeners take requests and the old
    /// ones that are gone take no more.
    ///
    /// # Errors
    /// If a socket cannot be bound; then nothing has changed and `apply` was not called.
    fn reconcile(
        &self,
        snapshot: &PolicySnapshot,
        apply: &mut dyn FnMut(),
    ) -> Result<(), BindError>;

    /// The sockets that take connections now, for who is to take them over.
    ///
    /// # Errors
    /// If the system gives no more handles.
    fn duplicate_sockets(&self) -> io::Result<Vec<BoundSocket>>;

    /// Which of the sockets were bound by somebody else.
    fn inherited_share(&self) -> InheritedShare;

    /// Takes no more connections; those that are open live on. For who has handed the sockets over.
    fn stop_accepting(&self);

    /// Takes the connections that wait, and no more, and closes those that are idle.
    fn close(&self);
}

/// A socket that takes connections.
#[derive(Debug)]
pub struct BoundSocket {
    /// Whose it is: `admin`, or `listener NAME`; empty if nobody says.
    pub owner: String,
    /// The address that was asked for; port 0 lets the system choose.
    pub requested_address: SocketAddr,
    /// It.
    pub socket: TcpListener,
}

/// Sockets that this process did not bind itself: a supervisor holds them, or another process has handed them over.
#[derive(Debug)]
pub struct InheritedSockets {
    /// Guards the taking of one.
    sockets: Mutex<Vec<BoundSocket>>,
    /// At which of them connections are taken. Until then they wait, or somebody else takes them.
    accept_scope: watch::Sender<AcceptScope>,
}

/// At which of the sockets that somebody else has bound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcceptScope {
    /// At none.
    None,
    /// Where the app asks others.
    Outbound,
    /// At all.
    All,
}

/// Which sockets of the listeners were bound by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InheritedShare {
    /// None.
    None,
    /// Some, and others by this process.
    Some,
    /// All.
    All,
}

impl InheritedSockets {
    /// These sockets.
    #[must_use]
    pub fn new(sockets: Vec<BoundSocket>) -> Self {
        Self {
            sockets: Mutex::new(sockets),
            accept_scope: watch::Sender::new(AcceptScope::None),
        }
    }

    /// Takes connections at them from now on.
    pub fn set_accept_scope(&self, accept_scope: AcceptScope) {
        self.accept_scope.send_replace(accept_scope);
    }

    /// At which of them connections are taken.
    #[must_use]
    pub fn subscribe_accept_scope(&self) -> watch::Receiver<AcceptScope> {
        self.accept_scope.subscribe()
    }

    /// Takes the one for an address, if it is there; where the system chose the port, the owner's.
    pub fn take(&self, owner: &str, requested_address: SocketAddr) -> Option<TcpListener> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let index = sockets.iter().position(|bound| {
            bound.requested_address == requested_address
                && (requested_address.port() != 0 || bound.owner == owner)
        })?;
        Some(sockets.swap_remove(index).socket)
    }

    /// Closes those that nobody took; their addresses.
    pub fn close_unclaimed(&self) -> Vec<SocketAddr> {
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .map(|bound| bound.requested_address)
            .collect()
    }
}

/// A socket cannot be bound.
#[derive(Debug)]
pub struct BindError {
    /// The listener.
    pub listener: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
    /// Why.
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

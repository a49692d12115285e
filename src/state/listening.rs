//! What the background asks of the data plane: to follow a set of policies with its sockets.
//!
//! The background and the data plane do not know each other; they meet here.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::policy::snapshot::Snapshot;

/// The sockets of an instance.
pub trait ListenerSet: fmt::Debug + Send + Sync {
    /// Binds what a new set needs and does not have, then calls `apply`, then lets the new listeners take requests and the old
    /// ones that are gone take no more.
    ///
    /// # Errors
    /// If a socket cannot be bound; then nothing has changed and `apply` was not called.
    fn follow(&self, snapshot: &Snapshot, apply: &mut dyn FnMut()) -> Result<(), CannotBind>;

    /// The sockets that take connections now, for who is to take them over.
    ///
    /// # Errors
    /// If the system gives no more handles.
    fn sockets(&self) -> io::Result<Vec<BoundSocket>>;

    /// Which of the sockets were bound by somebody else.
    fn inheritance(&self) -> Inheritance;

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
    pub asked: SocketAddr,
    /// It.
    pub socket: TcpListener,
}

/// Sockets that this process did not bind itself: a supervisor holds them, or another process has handed them over.
#[derive(Debug)]
pub struct Inherited {
    /// Guards the taking of one.
    sockets: Mutex<Vec<BoundSocket>>,
    /// At which of them connections are taken. Until then they wait, or somebody else takes them.
    gate: watch::Sender<Gate>,
}

/// At which of the sockets that somebody else has bound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// At none.
    Shut,
    /// Where the app asks others.
    ForApp,
    /// At all.
    Open,
}

/// Which sockets of the listeners were bound by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inheritance {
    /// None.
    None,
    /// Some, and others by this process.
    Some,
    /// All.
    All,
}

impl Inherited {
    /// These sockets.
    #[must_use]
    pub fn new(sockets: Vec<BoundSocket>) -> Self {
        Self {
            sockets: Mutex::new(sockets),
            gate: watch::Sender::new(Gate::Shut),
        }
    }

    /// Takes connections at them from now on.
    pub fn open(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }

    /// At which of them connections are taken.
    #[must_use]
    pub fn gate(&self) -> watch::Receiver<Gate> {
        self.gate.subscribe()
    }

    /// Takes the one for an address, if it is there; where the system chose the port, the owner's.
    pub fn take(&self, owner: &str, asked: SocketAddr) -> Option<TcpListener> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let place = sockets.iter().position(|bound| {
            bound.asked == asked && (asked.port() != 0 || bound.owner == owner)
        })?;
        Some(sockets.swap_remove(place).socket)
    }

    /// Closes those that nobody took; their addresses.
    pub fn close_rest(&self) -> Vec<SocketAddr> {
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .map(|bound| bound.asked)
            .collect()
    }
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
        write!(
            f,
            "the listener `{}` cannot be bound to {}: {}",
            self.listener, self.address, self.error
        )
    }
}

impl std::error::Error for CannotBind {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

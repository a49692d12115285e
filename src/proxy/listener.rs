//! Taking connections.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{net::TcpStream, sync::watch};

use super::{
    connection,
    worker::{Worker, WorkerHandle},
};
use crate::{
    clock,
    policy::{document::Direction, snapshot::ListenerSpec},
    state::{State, listening::Gate},
    telemetry::metrics::name,
};

/// Connections that the system may hold back for us.
const BACKLOG: i32 = 4096;

/// How long accepting pauses when the system gives no more sockets.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub(super) struct Bound {
    original: TcpListener,
    /// Whether somebody else has bound it.
    is_inherited: bool,
    /// One handle on the socket for each worker.
    sockets: Vec<TcpListener>,
    address: SocketAddr,
}

/// A listener that takes requests.
#[derive(Debug)]
pub(super) struct Listening {
    shared: Arc<Shared>,
    closing: watch::Sender<Closing>,
    /// The real address.
    pub(super) address: SocketAddr,
    /// Whether somebody else has bound its socket.
    pub(super) is_inherited: bool,
    /// As long as it takes connections: a handle to give to who takes over. Guards single reads and the closing.
    socket: Mutex<Option<TcpListener>>,
}

/// How far a listener is on its way out, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closing {
    /// It takes connections.
    Open,
    /// It takes none. Each of those that are open ends with its next answer.
    Stopped,
    /// Those that are idle end, too.
    Closed,
}

/// What the connections of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: ArcSwap<ListenerSpec>,
    connections: Arc<AtomicU32>,
    state: Arc<State>,
}

impl Bound {
    /// Binds an address, for so many workers.
    pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        // So that a restart need not wait for the last connections of its predecessor.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::of(socket.into(), workers, false)
    }

    /// Takes a socket that somebody else has bound, for so many workers.
    pub(super) fn adopt(socket: TcpListener, workers: usize) -> io::Result<Self> {
        Self::of(socket, workers, true)
    }

    fn of(socket: TcpListener, workers: usize, is_inherited: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let sockets = (0..workers)
            .map(|_| socket.try_clone())
            .collect::<io::Result<_>>()?;
        Ok(Self {
            original: socket,
            is_inherited,
            sockets,
            address,
        })
    }

    /// The real address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes requests, on every worker; `connections` counts those of the clients.
    pub(super) fn listen(
        self,
        spec: ListenerSpec,
        workers: &[WorkerHandle],
        state: &Arc<State>,
        gate: &watch::Receiver<Gate>,
    ) -> Listening {
        let connections = state.lifecycle.listener_connections(&spec.name);
        let shared = Arc::new(Shared {
            spec: ArcSwap::from_pointee(spec),
            connections,
            state: state.clone(),
        });
        let wanted = match shared.spec.load().direction {
            Direction::Inbound => Gate::Open,
            Direction::Outbound => Gate::ForApp,
        };
        let (closing, closed) = watch::channel(Closing::Open);
        for (worker, socket) in workers.iter().zip(self.sockets) {
            let (shared, worker_there, closed, mut gate) = (
                shared.clone(),
                worker.worker.clone(),
                closed.clone(),
                gate.clone(),
            );
            let is_inherited = self.is_inherited;
            worker.runtime.spawn(async move {
                // Where somebody else may still serve, or what comes waits, nobody is served before this instance can.
                if is_inherited && gate.wait_for(|gate| *gate >= wanted).await.is_err() {
                    return;
                }
                accept(socket, shared, worker_there, closed).await;
            });
        }
        Listening {
            shared,
            closing,
            address: self.address,
            is_inherited: self.is_inherited,
            socket: Mutex::new(Some(self.original)),
        }
    }
}

impl Listening {
    /// Follows a new specification; its address is not looked at.
    pub(super) fn reconfigure(&self, spec: ListenerSpec) {
        self.shared.spec.store(Arc::new(spec));
    }

    /// Another handle on its socket, if it takes connections.
    pub(super) fn socket(&self) -> io::Result<Option<TcpListener>> {
        self.socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(TcpListener::try_clone)
            .transpose()
    }

    /// What the listener follows.
    pub(super) fn spec(&self) -> Arc<ListenerSpec> {
        self.shared.spec.load_full()
    }

    /// Is on its way out so far; it never comes back. Requests that are being served run on.
    pub(super) fn reach(&self, closing: Closing) {
        self.socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.closing.send_if_modified(|known| {
            *known < closing && std::mem::replace(known, closing) != closing
        });
    }
}

async fn accept(
    socket: TcpListener,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    mut closing: watch::Receiver<Closing>,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!("listener {}: {error}", shared.spec.load().name),
    };
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = closing.wait_for(|closing| *closing > Closing::Open) => break,
        };
        match accepted {
            Ok((tcp, peer)) => take(tcp, peer, &shared, &worker, &closing),
            // The system has no more sockets, or the client left before it was accepted. Trying again at once would spin.
            Err(error) => {
                tracing::debug!("accepting failed: {error}");
                clock::sleep(PAUSE).await;
            }
        }
    }
    // Whoever has taken the socket over takes what waits in it, too.
    if *closing.borrow() == Closing::Closed {
        accept_waiting(socket, &shared, &worker, &closing);
    }
}

/// Takes the connections that the system has made for us already: closing the socket would reset them.
fn accept_waiting(
    socket: tokio::net::TcpListener,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    closing: &watch::Receiver<Closing>,
) {
    // The system is asked itself: what tokio knows of the socket may be older than the last connection.
    let Ok(socket) = socket.into_std() else {
        return;
    };
    while let Ok((tcp, peer)) = socket.accept() {
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        if let Ok(tcp) = tcp {
            take(tcp, peer, shared, worker, closing);
        }
    }
}

fn take(
    tcp: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    closing: &watch::Receiver<Closing>,
) {
    let Some(place) = Place::take(shared) else {
        let spec = shared.spec.load();
        worker
            .state
            .telemetry
            .metrics
            .counter(name::CONNECTIONS_REFUSED, &[("listener", &spec.name)])
            .increment(1);
        return;
    };
    // Answers are pushed when they are complete; waiting for more would only delay them.
    _ = tcp.set_nodelay(true);
    tokio::spawn(connection::serve(
        tcp,
        peer,
        place,
        worker.clone(),
        closing.clone(),
    ));
}

/// A place among a listener's connections.
#[derive(Debug)]
pub(super) struct Place(Arc<Shared>);

impl Place {
    /// What the connections of the listener share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let max = shared.spec.load().limits.max_connections;
        let taken = shared
            .connections
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < max).then_some(count + 1)
            });
        taken.ok().map(|_| Self(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.state.departure.connection_ends();
    }
}

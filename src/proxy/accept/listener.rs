//! Taking connections.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{net::TcpStream, sync::watch};

use crate::{
    clock,
    policy::{document::Direction, snapshot::ListenerSpec},
    proxy::{
        accept::{
            connection,
            listener_context::{ConnectionPermit, ListenerContext, ListenerState},
        },
        upstream::worker::{Worker, WorkerHandle},
    },
    state::{State, instance::listener_sockets::AcceptScope},
    telemetry::metrics::name,
};

/// Connections that the system may hold back for us.
const ACCEPT_BACKLOG: i32 = 4096;

/// How long accepting pauses when the system gives no more sockets.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub(crate) struct BoundListener {
    socket: TcpListener,
    /// Whether somebody else has bound it.
    is_inherited: bool,
    /// One handle on the socket for each worker.
    worker_sockets: Vec<TcpListener>,
    address: SocketAddr,
}

/// A listener that takes requests.
#[derive(Debug)]
pub(crate) struct ActiveListener {
    context: Arc<ListenerContext>,
    state_sender: watch::Sender<ListenerState>,
    /// The real address.
    pub(crate) address: SocketAddr,
    /// Whether somebody else has bound its socket.
    pub(crate) is_inherited: bool,
    /// As long as it takes connections: a handle to give to who takes over. Guards single reads and the closing.
    socket: Mutex<Option<TcpListener>>,
}

impl BoundListener {
    /// Binds an address, for so many workers.
    pub(crate) fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        // So that a restart need not wait for the last connections of its predecessor.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(ACCEPT_BACKLOG)?;
        Self::from_socket(socket.into(), workers, false)
    }

    /// Takes a socket that somebody else has bound, for so many workers.
    pub(crate) fn from_inherited(socket: TcpListener, workers: usize) -> io::Result<Self> {
        Self::from_socket(socket, workers, true)
    }

    fn from_socket(socket: TcpListener, workers: usize, is_inherited: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let sockets = (0..workers)
            .map(|_| socket.try_clone())
            .collect::<io::Result<_>>()?;
        Ok(Self {
            socket,
            is_inherited,
            worker_sockets: sockets,
            address,
        })
    }

    /// The real address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes requests, on every worker; `connections` counts those of the clients.
    pub(crate) fn listen(
        self,
        spec: ListenerSpec,
        workers: &[WorkerHandle],
        state: &Arc<State>,
        gate: &watch::Receiver<AcceptScope>,
    ) -> ActiveListener {
        let connections = state.lifecycle.listener_connections(&spec.name);
        let context = Arc::new(ListenerContext {
            spec: ArcSwap::from_pointee(spec),
            connections,
            state: state.clone(),
        });
        let required_gate = match context.spec.load().direction {
            Direction::Inbound => AcceptScope::All,
            Direction::Outbound => AcceptScope::Outbound,
        };
        let (listener_state, state_receiver) = watch::channel(ListenerState::Open);
        for (worker, socket) in workers.iter().zip(self.worker_sockets) {
            let (context, task_worker, state_receiver, mut gate) = (
                context.clone(),
                worker.worker.clone(),
                state_receiver.clone(),
                gate.clone(),
            );
            let is_inherited = self.is_inherited;
            worker.runtime.spawn(async move {
                // Where somebody else may still serve, or what comes waits, nobody is served before this instance can.
                if is_inherited && gate.wait_for(|gate| *gate >= required_gate).await.is_err() {
                    return;
                }
                run_accept_loop(socket, context, task_worker, state_receiver).await;
            });
        }
        ActiveListener {
            context,
            state_sender: listener_state,
            address: self.address,
            is_inherited: self.is_inherited,
            socket: Mutex::new(Some(self.socket)),
        }
    }
}

impl ActiveListener {
    /// Follows a new specification; its address is not looked at.
    pub(crate) fn reconfigure(&self, spec: ListenerSpec) {
        self.context.spec.store(Arc::new(spec));
    }

    /// Another handle on its socket, if it takes connections.
    pub(crate) fn try_clone_socket(&self) -> io::Result<Option<TcpListener>> {
        self.socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(TcpListener::try_clone)
            .transpose()
    }

    /// What the listener follows.
    pub(crate) fn spec(&self) -> Arc<ListenerSpec> {
        self.context.spec.load_full()
    }

    /// Is on its way out so far; it never comes back. Requests that are being served run on.
    pub(crate) fn advance_to(&self, listener_state: ListenerState) {
        self.socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.state_sender.send_if_modified(|current| {
            *current < listener_state
                && std::mem::replace(current, listener_state) != listener_state
        });
    }
}

async fn run_accept_loop(
    socket: TcpListener,
    context: Arc<ListenerContext>,
    worker: Arc<Worker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!("listener {}: {error}", context.spec.load().name),
    };
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = listener_state.wait_for(|listener_state| *listener_state > ListenerState::Open) => break,
        };
        match accepted {
            Ok((tcp, client_address)) => {
                spawn_connection(tcp, client_address, &context, &worker, &listener_state)
            }
            // The system has no more sockets, or the client left before it was accepted. Trying again at once would spin.
            Err(error) => {
                tracing::debug!("accepting failed: {error}");
                clock::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    // Whoever has taken the socket over takes what waits in it, too.
    if *listener_state.borrow() == ListenerState::Closed {
        accept_backlog(socket, &context, &worker, &listener_state);
    }
}

/// Takes the connections that the system has made for us already: closing the socket would reset them.
fn accept_backlog(
    socket: tokio::net::TcpListener,
    context: &Arc<ListenerContext>,
    worker: &Arc<Worker>,
    listener_state: &watch::Receiver<ListenerState>,
) {
    // The system is asked itself: what tokio knows of the socket may be older than the last connection.
    let Ok(socket) = socket.into_std() else {
        return;
    };
    while let Ok((tcp, client_address)) = socket.accept() {
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        if let Ok(tcp) = tcp {
            spawn_connection(tcp, client_address, context, worker, listener_state);
        }
    }
}

fn spawn_connection(
    tcp: TcpStream,
    client_address: SocketAddr,
    context: &Arc<ListenerContext>,
    worker: &Arc<Worker>,
    listener_state: &watch::Receiver<ListenerState>,
) {
    let Some(permit) = ConnectionPermit::try_acquire(context) else {
        let spec = context.spec.load();
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
        client_address,
        permit,
        worker.clone(),
        listener_state.clone(),
    ));
}

//! Accepts the connections of one listener on every worker.
//!
//! A listener is bound first and activated later, so that a policy reload can fail before it
//! changes anything. Each worker accepts on its own handle of the socket. When a listener
//! closes, it first accepts the connections that the kernel has completed, because closing the
//! socket would reset them. The module does not know which listeners a policy contains;
//! `listeners` does.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::watch};

use crate::{
    clock,
    policy::{document::Direction, snapshot::ListenerSpec},
    proxy::{
        accept::{
            connection,
            listener_context::{AcceptingWorker, ConnectionPermit, ListenerContext, ListenerState},
        },
        upstream::worker::{Worker, WorkerHandle},
    },
    resilience::memory_pressure::MemoryLevel,
    state::{State, instance::listener_sockets::AcceptScope},
    telemetry::memory_measure::MemoryMeasure,
};

/// Requested length of the accept queue of a socket, in connections. The kernel may lower it.
const ACCEPT_BACKLOG: i32 = 4096;

/// Pause after a failed accept, for example when the process has no file descriptor left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Time after which a listener looks at the level of memory pressure again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Listening socket that does not accept connections yet.
#[derive(Debug)]
pub(crate) struct BoundListener {
    socket: TcpListener,
    /// Whether another process bound the socket.
    is_inherited: bool,
    /// Duplicates of the socket, one for each worker.
    worker_sockets: Vec<TcpListener>,
    /// Local address of the socket, with its actual port.
    address: SocketAddr,
}

/// Listener whose workers accept connections, until its state changes.
#[derive(Debug)]
pub(crate) struct ActiveListener {
    context: Arc<ListenerContext>,
    state_sender: watch::Sender<ListenerState>,
    /// Local address of the socket, with its actual port.
    pub(crate) address: SocketAddr,
    /// Whether another process bound the socket.
    pub(crate) is_inherited: bool,
    /// Handle to duplicate for a successor process; `None` once the listener stops accepting.
    /// The lock covers single accesses.
    socket: Mutex<Option<TcpListener>>,
}

impl BoundListener {
    /// Binds an address and creates a socket handle for each of `workers`.
    ///
    /// # Errors
    /// If the address cannot be bound, or no file descriptor is available.
    pub(crate) fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        // Without this option, a restart could not bind while connections of its predecessor
        // linger.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(ACCEPT_BACKLOG)?;
        Self::from_socket(socket.into(), workers, false)
    }

    /// Adopts a socket that another process bound, and creates a handle for each of `workers`.
    ///
    /// # Errors
    /// If the socket has no local address, or no file descriptor is available.
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

    /// Returns the local address of the socket, with its actual port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts accepting connections on every worker.
    ///
    /// A listener on an inherited socket first waits until `gate` permits its direction.
    pub(crate) fn listen<'w>(
        self,
        spec: ListenerSpec,
        workers: impl Iterator<Item = (&'w WorkerHandle, &'w Arc<AcceptingWorker>)>,
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
        for ((worker, accepting), socket) in workers.zip(self.worker_sockets) {
            let (context, task_worker, state_receiver, mut gate) = (
                context.clone(),
                accepting.clone(),
                state_receiver.clone(),
                gate.clone(),
            );
            let is_inherited = self.is_inherited;
            worker.runtime.spawn(async move {
                // On an inherited socket, the predecessor may still accept connections, or they
                // wait in the accept queue. This instance accepts them once it can serve them.
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
    /// Applies a new specification to new requests and new connections. Its address is ignored.
    pub(crate) fn reconfigure(&self, spec: ListenerSpec) {
        self.context.spec.store(Arc::new(spec));
    }

    /// Returns a duplicate of the socket, or `None` if the listener has stopped accepting.
    ///
    /// # Errors
    /// If no file descriptor is available.
    pub(crate) fn try_clone_socket(&self) -> io::Result<Option<TcpListener>> {
        self.socket
            .lock()
            .as_ref()
            .map(TcpListener::try_clone)
            .transpose()
    }

    /// Returns the specification in force.
    pub(crate) fn spec(&self) -> Arc<ListenerSpec> {
        self.context.spec.load_full()
    }

    /// Stops accepting connections and advances to a later state. An earlier state has no
    /// effect.
    ///
    /// Requests in flight continue. A listener never returns to [`ListenerState::Open`].
    pub(crate) fn advance_to(&self, listener_state: ListenerState) {
        self.socket.lock().take();
        self.state_sender.send_if_modified(|current| {
            *current < listener_state
                && std::mem::replace(current, listener_state) != listener_state
        });
    }
}

/// Accepts connections until the listener stops, then the accept queue if it closes.
async fn run_accept_loop(
    socket: TcpListener,
    context: Arc<ListenerContext>,
    worker: Arc<AcceptingWorker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!("listener {}: {error}", context.spec.load().name),
    };
    loop {
        let accepted = tokio::select! {
            accepted = accept_with_memory(&socket, &worker.worker) => accepted,
            _ = listener_state.wait_for(|state| *state > ListenerState::Open) => break,
        };
        match accepted {
            Ok((tcp, client_address)) => {
                spawn_connection(tcp, client_address, &context, &worker, &listener_state)
            }
            // The process has no file descriptor left, or the client closed the connection
            // before it was accepted. An immediate retry could spin.
            Err(error) => {
                tracing::debug!("accepting failed: {error}");
                clock::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    // After a handover the state is `Draining`, and the new process accepts the queue.
    if *listener_state.borrow() == ListenerState::Closed {
        accept_backlog(socket, &context, &worker, &listener_state);
    }
}

/// Accepts a connection, once the pressure on memory permits it.
///
/// Cancel safe: a dropped call loses no connection.
async fn accept_with_memory(
    socket: &tokio::net::TcpListener,
    worker: &Worker,
) -> io::Result<(TcpStream, SocketAddr)> {
    if worker.memory_level() >= MemoryLevel::High {
        worker.state.memory.record(MemoryMeasure::PauseAccept);
        while worker.memory_level() >= MemoryLevel::High {
            clock::sleep(ACCEPT_PAUSE).await;
        }
    }
    socket.accept().await
}

/// Accepts the connections in the accept queue, because closing the socket would reset them.
fn accept_backlog(
    socket: tokio::net::TcpListener,
    context: &Arc<ListenerContext>,
    worker: &Arc<AcceptingWorker>,
    listener_state: &watch::Receiver<ListenerState>,
) {
    // The call goes to the kernel, because the readiness that tokio has cached can be outdated.
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

/// Serves a connection in its own task. A connection beyond the limit is closed and counted.
fn spawn_connection(
    tcp: TcpStream,
    client_address: SocketAddr,
    context: &Arc<ListenerContext>,
    worker: &Arc<AcceptingWorker>,
    listener_state: &watch::Receiver<ListenerState>,
) {
    let Some(permit) = ConnectionPermit::try_acquire(context) else {
        let spec = context.spec.load();
        context
            .state
            .telemetry
            .metrics
            .record_refused_connection(&spec.name);
        return;
    };
    // A response is written as a whole, so Nagle's algorithm would only delay it.
    _ = tcp.set_nodelay(true);
    let max_unsent_bytes = context.state.memory.max_unsent_bytes();
    // An older kernel queues more.
    _ = SockRef::from(&tcp).set_tcp_notsent_lowat(max_unsent_bytes);
    tokio::spawn(connection::serve(
        tcp,
        client_address,
        permit,
        worker.clone(),
        listener_state.clone(),
    ));
}

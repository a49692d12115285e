//! Taking connections, and the life of one: request after request, until somebody has had enough.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use pingora::protocols::{Stream, http::ServerSession};
use tokio::{net::TcpStream, sync::watch};

use super::{
    client::Client,
    rejection::{self, Rejection},
    serve::{self, After},
    socket::Socket,
    wire::{self, Wire},
    worker::{Worker, WorkerHandle},
};
use crate::{
    clock,
    policy::snapshot::ListenerSpec,
    telemetry::{metrics::name, reason::Reason},
};

/// Connections that the system may hold back for us.
const BACKLOG: i32 = 4096;

/// How long accepting pauses when the system gives no more sockets.
const PAUSE: Duration = Duration::from_millis(100);

/// What is read and thrown away of a request that was answered before its end, so that the client gets to read the answer: so
/// long, and so much.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// A bound socket.
#[derive(Debug)]
pub(super) struct Bound {
    /// One handle on the socket for each worker.
    sockets: Vec<TcpListener>,
    address: SocketAddr,
}

/// A listener that takes requests.
#[derive(Debug)]
pub(super) struct Listening {
    shared: Arc<Shared>,
    /// `true` ends accepting, and closes connections at their next pause.
    closing: watch::Sender<bool>,
    /// The real address.
    pub(super) address: SocketAddr,
}

/// What the connections of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: ArcSwap<ListenerSpec>,
    connections: Arc<AtomicU32>,
}

impl Bound {
    /// Binds an address, for so many workers.
    pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        // So that a restart need not wait for the last connections of its predecessor.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket: TcpListener = socket.into();
        let address = socket.local_addr()?;
        let sockets = (0..workers).map(|_| socket.try_clone()).collect::<io::Result<_>>()?;
        Ok(Self { sockets, address })
    }

    /// The real address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes requests, on every worker; `connections` counts those of the clients.
    pub(super) fn listen(self, spec: ListenerSpec, workers: &[WorkerHandle], connections: Arc<AtomicU32>) -> Listening {
        let shared = Arc::new(Shared { spec: ArcSwap::from_pointee(spec), connections });
        let (closing, closed) = watch::channel(false);
        for (worker, socket) in workers.iter().zip(self.sockets) {
            worker.runtime.spawn(accept(socket, shared.clone(), worker.worker.clone(), closed.clone()));
        }
        Listening { shared, closing, address: self.address }
    }
}

impl Listening {
    /// Follows a new specification; its address is not looked at.
    pub(super) fn reconfigure(&self, spec: ListenerSpec) {
        self.shared.spec.store(Arc::new(spec));
    }

    /// What the listener follows.
    pub(super) fn spec(&self) -> Arc<ListenerSpec> {
        self.shared.spec.load_full()
    }

    /// Takes no more connections. Requests that are being served run on; idle connections are closed.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }
}

async fn accept(socket: TcpListener, shared: Arc<Shared>, worker: Arc<Worker>, mut closing: watch::Receiver<bool>) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!("listener {}: {error}", shared.spec.load().name),
    };
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = closing.wait_for(|is_closing| *is_closing) => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(place) = Place::take(&shared) else {
                    let spec = shared.spec.load();
                    worker.state.telemetry.metrics.counter(name::CONNECTIONS_REFUSED, &[("listener", &spec.name)]).increment(1);
                    continue;
                };
                // Answers are pushed when they are complete; waiting for more would only delay them.
                _ = tcp.set_nodelay(true);
                tokio::spawn(connection(tcp, peer, place, worker.clone(), closing.clone()));
            }
            // The system has no more sockets, or the client left before it was accepted. Trying again at once would spin.
            Err(error) => {
                tracing::debug!("accepting failed: {error}");
                clock::sleep(PAUSE).await;
            }
        }
    }
}

/// A place among a listener's connections.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let max = shared.spec.load().limits.max_connections;
        let taken = shared.connections.try_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1));
        taken.ok().map(|_| Self(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The life of one connection.
async fn connection(tcp: TcpStream, peer: SocketAddr, place: Place, worker: Arc<Worker>, mut closing: watch::Receiver<bool>) {
    let (mut stream, wire) = wire::open(Socket::Tcp(tcp));
    let mut prefix: Option<BytesMut> = None;
    loop {
        if prefix.is_none() && !wait_for_request(&wire, &place.0, &mut closing).await {
            return;
        }
        // The exchange is boxed, so that an idle connection holds little more than its socket.
        let next = Box::pin(one_request(stream, prefix.take(), &wire, peer.ip(), &place.0, &worker, &closing)).await;
        let Some((reused, rest)) = next else { return };
        (stream, prefix) = (reused, rest);
    }
}

/// Waits between two requests; `false` if there will be none.
async fn wait_for_request(wire: &Wire, shared: &Shared, closing: &mut watch::Receiver<bool>) -> bool {
    let idle = shared.spec.load().limits.idle_timeout;
    tokio::select! {
        biased;
        readable = clock::within(Some(idle), wire.readable()) => matches!(readable, Ok(Ok(()))),
        _ = closing.wait_for(|is_closing| *is_closing) => false,
    }
}

/// Reads, serves and finishes one request; the stream and what was read too much, if another may follow.
async fn one_request(
    stream: Stream,
    prefix: Option<BytesMut>,
    wire: &Arc<Wire>,
    peer: IpAddr,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    closing: &watch::Receiver<bool>,
) -> Option<(Stream, Option<BytesMut>)> {
    let limits = shared.spec.load().limits;
    let mut session = Box::new(ServerSession::new_http1(stream));
    // Time is kept here, over the whole head and not over single reads.
    session.set_read_timeout(None);
    session.set_pipelining_enabled(true);
    // An interim answer must not end the connection; the relay decides.
    session.set_close_on_response_before_downstream_finish(false);
    if let Some(prefix) = prefix {
        session.set_pipelined_prefix(prefix);
    }
    let received = wire.received();
    wire.allow(Some(limits.max_header_bytes));
    let read = clock::within(Some(limits.header_timeout), session.read_request()).await;
    let is_too_long = wire.is_allowance_used();
    wire.allow(None);
    // What was read while the policies changed is served under the name that they know.
    let mut client = Client { session, wire: wire.clone(), peer, listener: shared.spec.load_full() };
    let reason = match read {
        Ok(Ok(true)) => {
            let is_closing = *closing.borrow();
            let after = serve::serve(worker, &mut client, is_closing).await;
            return finish(client, after).await;
        }
        // Nothing came, or the client left in the middle of a head.
        Ok(Ok(false)) => return None,
        Err(clock::Elapsed) if wire.received() == received => return None,
        Err(clock::Elapsed) => Reason::HeaderTimeout,
        Ok(Err(_)) if is_too_long => Reason::HeaderTooLarge,
        Ok(Err(error)) if matches!(error.etype, pingora::ErrorType::ConnectionClosed | pingora::ErrorType::ReadError) => return None,
        Ok(Err(_)) => Reason::BadRequest,
    };
    let live = worker.state.live.load();
    live.unrouted.refused(&worker.state.telemetry.metrics, reason);
    client.session.set_keepalive(None);
    if rejection::answer(&mut client, &Rejection::of(reason), false).await.is_ok() {
        linger(&mut client).await;
    }
    None
}

async fn finish(mut client: Client, after: After) -> Option<(Stream, Option<BytesMut>)> {
    match after {
        After::Close => None,
        After::Linger => {
            linger(&mut client).await;
            None
        }
        // The client may be sending already what will not be read; closing at once would cost it the end of the answer.
        After::Reuse if client.session.get_keepalive().is_none() => {
            linger(&mut client).await;
            None
        }
        After::Reuse => client.session.finish().await.ok().flatten().map(pingora::protocols::http::ReusableHttpStream::into_parts),
    }
}

/// Ends our side and takes in what the client is still sending. Closing at once would reset the connection, and the client
/// might lose the answer before it has read it.
async fn linger(client: &mut Client) {
    client.session.shutdown().await;
    let wire = client.wire.clone();
    let (time, bytes) = LINGER;
    let enough = wire.received() + bytes;
    let drain = async {
        // On the heap, so that it takes no room in every request's future.
        let mut scratch = vec![0_u8; 4096];
        while wire.received() < enough && wire.readable().await.is_ok() {
            match wire.discard(&mut scratch) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    };
    // Enough patience was shown either way.
    _ = clock::within(Some(time), drain).await;
}

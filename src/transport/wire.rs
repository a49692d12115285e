//! The transport below a session: a connection whose writes queue.
//!
//! pingora's sessions write and wait until the socket has taken everything. A proxy that waits so cannot read at the same time,
//! and a backend that answers before it has read the request would block both for ever. Here a write only queues, and who
//! owns the exchange pushes the queue out, beside whatever else it waits for: so both directions flow in one task, without
//! splitting the session in two. As a gift, a head and the first bytes of its body leave in one packet.
//!
//! The queue is bounded by its users: nobody writes a chunk before the one before it has been pushed. Under TLS the queue holds
//! what goes over the network, and everything else is as it is without.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    socket::{Reader, Socket, Writer},
    tls::{Offer, Session},
};

/// A queue that has grown beyond this is given back when it is empty.
const KEPT_QUEUE: usize = 16 << 10;

/// No bound on what may be read.
const UNBOUNDED: usize = usize::MAX;

/// What is read from a socket at once under TLS: a whole record.
const RECORD: usize = 16 << 10;

/// The handle of a connection that stays with the exchange while a session owns the stream.
#[derive(Debug)]
pub struct Wire {
    socket: Writer,
    /// Bytes that were written and not yet taken by the socket; guards single appends and takes.
    queue: Mutex<BytesMut>,
    has_queue: AtomicBool,
    has_unread: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    /// What may still be read before reading fails: the bound on a request's head.
    allowance: AtomicUsize,
    /// Guards single reads and writes; taken before the queue.
    tls: Option<Mutex<Session>>,
}

/// The stream that a session owns.
#[derive(Debug)]
pub struct Connection {
    reader: Reader,
    wire: Arc<Wire>,
    /// What was read to find out what is spoken, and is read again first.
    unread: BytesMut,
}

/// What two sides found out about each other.
#[derive(Debug, Default)]
pub struct Agreed {
    /// The protocol of ALPN.
    pub protocol: Option<Vec<u8>>,
    /// The certificate of the other side, if it has shown one.
    pub peer: Option<CertificateDer<'static>>,
}

/// Takes a connected socket apart into a stream for a session and a handle for the exchange.
#[must_use]
pub fn open(socket: Socket, tls: Option<rustls::Connection>) -> (Connection, Arc<Wire>) {
    let (reader, writer) = socket.split();
    let wire = Arc::new(Wire {
        socket: writer,
        queue: Mutex::default(),
        has_queue: AtomicBool::new(false),
        has_unread: AtomicBool::new(false),
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        allowance: AtomicUsize::new(UNBOUNDED),
        tls: tls.map(|connection| Mutex::new(Session::new(connection))),
    });
    (
        Connection {
            reader,
            wire: wire.clone(),
            unread: BytesMut::new(),
        },
        wire,
    )
}

impl Wire {
    /// Whether the socket has taken everything that was written.
    #[must_use]
    pub fn is_pushed(&self) -> bool {
        !self.has_queue.load(Ordering::Relaxed)
    }

    /// Bytes that the socket has not taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        if self.is_pushed() {
            0
        } else {
            lock(&self.queue).len()
        }
    }

    /// Waits until the socket has taken everything that was written. Can be dropped and begun again at any time.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn push(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_push(context)).await
    }

    pub(super) fn poll_push(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.is_pushed() {
                return Poll::Ready(Ok(()));
            }
            let mut queue = lock(&self.queue);
            match self.socket.try_write(&queue) {
                Ok(count) => {
                    self.sent.fetch_add(count as u64, Ordering::Relaxed);
                    queue.advance(count);
                    self.note_queue(&mut queue);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(queue);
                    ready!(self.socket.poll_write_ready(context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Waits until something can be read, or the other side has closed.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn readable(&self) -> io::Result<()> {
        loop {
            if self.tls.is_none() {
                return self.socket.readable().await;
            }
            // A ticket or a new key is not what is waited for.
            if self.offer()? != Offer::Nothing {
                return Ok(());
            }
            self.socket.readable().await?;
            self.take_in()?;
        }
    }

    /// Agrees with the other side, if there is something to agree on.
    ///
    /// # Errors
    /// If the other side breaks the protocol, is not trusted, does not trust us, or leaves.
    pub async fn handshake(&self) -> io::Result<Agreed> {
        let Some(tls) = &self.tls else {
            return Ok(Agreed::default());
        };
        loop {
            let is_handshaking = self.with_tls(tls, |session, queue| {
                session.flush(queue).map(|()| session.is_handshaking())
            })?;
            let pushed = self.push().await;
            if !is_handshaking {
                pushed?;
                let session = lock(tls);
                return Ok(Agreed {
                    protocol: session.protocol(),
                    peer: session.peer_certificate(),
                });
            }
            pushed?;
            self.socket.readable().await?;
            match self.take_in() {
                Ok(Some(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => {
                    // The other side is told why, if it still listens.
                    _ = self.push().await;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the socket has something, whatever it is.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn has_more(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Whether something that was read to find out what is spoken is still to be read again.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.has_unread.load(Ordering::Relaxed)
    }

    /// Bytes read from the socket since it was connected.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes taken by the socket since it was connected.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the other side had closed before it got anything that was sent after the first `sent_before` bytes.
    ///
    /// A connection that is closed says so with its last segment, which also says what had arrived until then. So if that segment has come
    /// and acknowledges nothing of what was sent last, nobody has read it, whatever became of it later. A connection that was cut off
    /// instead (a reset) proves nothing. Where the system does not tell, nothing is proven either.
    #[must_use]
    pub fn closed_before(&self, sent_before: u64) -> bool {
        let Some((acknowledged, received)) = self.socket.counts() else {
            return false;
        };
        // The opening of a connection counts as one byte sent, its closing as one received (RFC 9293 section 3.4).
        acknowledged <= sent_before + 1 && received > self.received()
    }

    /// Ends the connection with a reset when it is closed, so that the other side knows that something is missing.
    pub fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }

    /// Lets reading fail after so many bytes; `None` lifts the bound.
    pub fn allow(&self, bytes: Option<usize>) {
        self.allowance
            .store(bytes.unwrap_or(UNBOUNDED), Ordering::Relaxed);
    }

    /// Whether reading failed because of the bound.
    #[must_use]
    pub fn is_allowance_used(&self) -> bool {
        self.allowance.load(Ordering::Relaxed) == 0
    }

    /// Asks the system, not the runtime's memory of it, whether an idle connection is still open and silent.
    #[must_use]
    pub fn is_idle_and_open(&self) -> bool {
        let is_silent = self.socket.is_silent_and_open();
        if self.tls.is_none() {
            return is_silent;
        }
        // A ticket that came after the last answer is no reason to give the connection up; plaintext is, whenever it came.
        (is_silent || self.take_in_now().is_ok_and(|is_open| is_open))
            && self.offer().is_ok_and(|offer| offer == Offer::Nothing)
    }

    /// Reads and throws away what is there; `false` at the end of the stream.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn discard(&self, scratch: &mut [u8]) -> io::Result<bool> {
        match self.socket.try_read(scratch) {
            Ok(count) => {
                self.received.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn note_queue(&self, queue: &mut BytesMut) {
        if queue.is_empty() && queue.capacity() > KEPT_QUEUE {
            *queue = BytesMut::new();
        }
        self.has_queue.store(!queue.is_empty(), Ordering::Relaxed);
    }

    /// What the session of TLS has to offer.
    fn offer(&self) -> io::Result<Offer> {
        self.tls
            .as_ref()
            .map_or(Ok(Offer::Nothing), |tls| self.with_tls(tls, Session::peek))
    }

    /// Takes in what the socket has, as the runtime knows it; how much that was, if there was anything.
    fn take_in(&self) -> io::Result<Option<usize>> {
        let mut bytes = vec![0; RECORD];
        match self.socket.try_read(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes in what the socket has, as the system knows it; whether it is still open.
    fn take_in_now(&self) -> io::Result<bool> {
        let mut bytes = vec![0; RECORD];
        match self.socket.receive(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn feed(&self, bytes: &[u8]) -> io::Result<()> {
        self.received
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.tls.as_ref().map_or(Ok(()), |tls| {
            self.with_tls(tls, |session, queue| session.feed(bytes, queue))
        })
    }

    fn with_tls<T>(
        &self,
        tls: &Mutex<Session>,
        act: impl FnOnce(&mut Session, &mut BytesMut) -> io::Result<T>,
    ) -> io::Result<T> {
        let (mut session, mut queue) = (lock(tls), lock(&self.queue));
        let done = act(&mut session, &mut queue);
        self.note_queue(&mut queue);
        done
    }
}

impl Connection {
    /// The handle of the connection.
    #[must_use]
    pub fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Puts bytes back, to be read again first.
    pub fn put_back(&mut self, bytes: BytesMut) {
        self.wire
            .has_unread
            .store(!bytes.is_empty(), Ordering::Relaxed);
        self.unread = bytes;
    }

    fn poll_plain(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        self.wire
            .received
            .fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_tls(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.wire.clone();
        let Some(tls) = &wire.tls else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let offer = wire.with_tls(tls, |session, queue| {
                session.read(buffer.initialize_unfilled(), queue)
            })?;
            if let Offer::Bytes(count) = offer {
                buffer.advance(count);
                return Poll::Ready(Ok(()));
            }
            let mut space = [MaybeUninit::<u8>::uninit(); RECORD];
            let mut record = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.reader).poll_read(context, &mut record))?;
            wire.feed(record.filled())?;
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let allowance = self.wire.allowance.load(Ordering::Relaxed);
        if allowance == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the head is too long",
            )));
        }
        let before = buffer.filled().len();
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(count));
            self.wire
                .has_unread
                .store(!self.unread.is_empty(), Ordering::Relaxed);
        } else if self.wire.tls.is_some() {
            ready!(self.poll_tls(context, buffer))?;
        } else {
            ready!(self.poll_plain(context, buffer))?;
        }
        if allowance != UNBOUNDED {
            self.wire.allowance.store(
                allowance.saturating_sub(buffer.filled().len() - before),
                Ordering::Relaxed,
            );
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    /// Queues, and never waits.
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &self.wire.tls {
            Some(tls) => self
                .wire
                .with_tls(tls, |session, queue| session.write(bytes, queue))?,
            None => {
                let mut queue = lock(&self.wire.queue);
                queue.extend_from_slice(bytes);
                self.wire.note_queue(&mut queue);
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Does nothing: pushing is up to the owner of the exchange.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.wire.tls {
            self.wire.with_tls(tls, Session::close)?;
        }
        ready!(self.wire.poll_push(context))?;
        Poll::Ready(self.wire.socket.shutdown())
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // A connection that is broken is closed already.
        _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        std::os::fd::AsRawFd::as_raw_fd(&self.wire.socket)
    }
}

impl Ssl for Connection {}

#[async_trait]
impl Peek for Connection {}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A connection on which one exchange has gone well, and the other side of it.
    async fn used() -> (Connection, Arc<Wire>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("an address"))
            .await
            .expect("a connection");
        let (mut far, _) = listener.accept().await.expect("a connection");
        let (mut connection, wire) = open(Socket::Tcp(near), None);
        connection.write_all(b"one").await.expect("it queues");
        wire.push().await.expect("it is taken");
        let mut word = [0; 3];
        far.read_exact(&mut word).await.expect("it arrives");
        far.write_all(b"yes").await.expect("it is taken");
        connection.read_exact(&mut word).await.expect("it arrives");
        (connection, wire, far)
    }

    /// Sends something, and reads until the end or a failure.
    async fn send(connection: &mut Connection, wire: &Wire) {
        connection.write_all(b"two").await.expect("it queues");
        // It may fail or not, as the news travels.
        _ = wire.push().await;
        let mut rest = Vec::new();
        _ = connection.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn what_was_sent_to_a_closed_connection_was_read_by_nobody() {
        let (mut connection, wire, far) = used().await;
        let before = wire.sent();
        drop(far);
        send(&mut connection, &wire).await;
        assert!(wire.closed_before(before));
    }

    #[tokio::test]
    async fn what_was_read_before_the_close_was_read() {
        let (mut connection, wire, mut far) = used().await;
        let before = wire.sent();
        let reading = tokio::spawn(async move {
            let mut word = [0; 3];
            far.read_exact(&mut word).await.expect("it arrives");
        });
        send(&mut connection, &wire).await;
        reading.await.expect("it ended");
        assert!(!wire.closed_before(before));
    }

    #[tokio::test]
    async fn a_connection_that_was_cut_off_proves_nothing() {
        let (mut connection, wire, mut far) = used().await;
        let before = wire.sent();
        let reading = tokio::spawn(async move {
            let mut byte = [0; 1];
            far.read_exact(&mut byte).await.expect("it arrives");
            // With something unread, closing is cutting off.
        });
        send(&mut connection, &wire).await;
        reading.await.expect("it ended");
        assert!(!wire.closed_before(before));
    }
}

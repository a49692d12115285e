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

use crate::transport::{
    socket::{Socket, SocketReadHalf, SocketWriteHalf},
    tls::{TlsReadOutcome, TlsSession},
};

/// A queue that has grown beyond this is given back when it is empty.
const RETAINED_QUEUE_BYTES: usize = 16 << 10;

/// No bound on what may be read.
const NO_READ_LIMIT: usize = usize::MAX;

/// What is read from a socket at once under TLS: a whole record.
const TLS_RECORD_BYTES: usize = 16 << 10;

/// The handle of a connection that stays with the exchange while a session owns the stream.
#[derive(Debug)]
pub struct ConnectionHandle {
    socket: SocketWriteHalf,
    /// Bytes that were written and not yet taken by the socket; guards single appends and takes.
    queue: Mutex<BytesMut>,
    has_queued_bytes: AtomicBool,
    has_replay_bytes: AtomicBool,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    /// What may still be read before reading fails: the bound on a request's head.
    read_limit: AtomicUsize,
    /// Guards single reads and writes; taken before the queue.
    tls: Option<Mutex<TlsSession>>,
}

/// The stream that a session owns.
#[derive(Debug)]
pub struct QueuedStream {
    reader: SocketReadHalf,
    handle: Arc<ConnectionHandle>,
    /// What was read to find out what is spoken, and is read again first.
    replay_bytes: BytesMut,
}

/// What two sides found out about each other.
#[derive(Debug, Default)]
pub struct HandshakeOutcome {
    /// The protocol of ALPN.
    pub alpn_protocol: Option<Vec<u8>>,
    /// The certificate of the other side, if it has shown one.
    pub peer_certificate: Option<CertificateDer<'static>>,
}

/// Takes a connected socket apart into a stream for a session and a handle for the exchange.
#[must_use]
pub fn open(
    socket: Socket,
    tls: Option<rustls::Connection>,
) -> (QueuedStream, Arc<ConnectionHandle>) {
    let (reader, writer) = socket.split();
    let handle = Arc::new(ConnectionHandle {
        socket: writer,
        queue: Mutex::default(),
        has_queued_bytes: AtomicBool::new(false),
        has_replay_bytes: AtomicBool::new(false),
        bytes_received: AtomicU64::new(0),
        bytes_sent: AtomicU64::new(0),
        read_limit: AtomicUsize::new(NO_READ_LIMIT),
        tls: tls.map(|connection| Mutex::new(TlsSession::new(connection))),
    });
    (
        QueuedStream {
            reader,
            handle: handle.clone(),
            replay_bytes: BytesMut::new(),
        },
        handle,
    )
}

impl ConnectionHandle {
    /// Whether the socket has taken everything that was written.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        !self.has_queued_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the socket has not taken yet.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        if self.is_flushed() {
            0
        } else {
            lock(&self.queue).len()
        }
    }

    /// Waits until the socket has taken everything that was written. Can be dropped and begun again at any time.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn flush(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.is_flushed() {
                return Poll::Ready(Ok(()));
            }
            let mut queue = lock(&self.queue);
            match self.socket.try_write(&queue) {
                Ok(count) => {
                    self.bytes_sent.fetch_add(count as u64, Ordering::Relaxed);
                    queue.advance(count);
                    self.update_queue_state(&mut queue);
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
            if self.peek_plaintext()? != TlsReadOutcome::NeedsInput {
                return Ok(());
            }
            self.socket.readable().await?;
            self.read_into_tls()?;
        }
    }

    /// Agrees with the other side, if there is something to agree on.
    ///
    /// # Errors
    /// If the other side breaks the protocol, is not trusted, does not trust us, or leaves.
    pub async fn handshake(&self) -> io::Result<HandshakeOutcome> {
        let Some(tls) = &self.tls else {
            return Ok(HandshakeOutcome::default());
        };
        loop {
            let is_handshaking = self.with_tls(tls, |session, queue| {
                session.flush(queue).map(|()| session.is_handshaking())
            })?;
            let flushed = self.flush().await;
            if !is_handshaking {
                flushed?;
                let session = lock(tls);
                return Ok(HandshakeOutcome {
                    alpn_protocol: session.alpn_protocol(),
                    peer_certificate: session.peer_certificate(),
                });
            }
            flushed?;
            self.socket.readable().await?;
            match self.read_into_tls() {
                Ok(Some(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => {
                    // The other side is told why, if it still listens.
                    _ = self.flush().await;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the socket has something, whatever it is.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn socket_readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Whether something that was read to find out what is spoken is still to be read again.
    #[must_use]
    pub fn has_replay_bytes(&self) -> bool {
        self.has_replay_bytes.load(Ordering::Relaxed)
    }

    /// Bytes read from the socket since it was connected.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Bytes taken by the socket since it was connected.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Whether the other side had closed before it got anything that was sent after the first `sent_before` bytes.
    ///
    /// A connection that is closed says so with its last segment, which also says what had arrived until then. So if that segment has come
    /// and acknowledges nothing of what was sent last, nobody has read it, whatever became of it later. A connection that was cut off
    /// instead (a reset) proves nothing. Where the system does not tell, nothing is proven either.
    #[must_use]
    pub fn peer_closed_before(&self, sent_before: u64) -> bool {
        let Some((acknowledged, received)) = self.socket.tcp_byte_counts() else {
            return false;
        };
        // The opening of a connection counts as one byte sent, its closing as one received (RFC 9293 section 3.4).
        acknowledged <= sent_before + 1 && received > self.bytes_received()
    }

    /// Ends the connection with a reset when it is closed, so that the other side knows that something is missing.
    pub fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }

    /// Lets reading fail after so many bytes; `None` lifts the bound.
    pub fn set_read_limit(&self, bytes: Option<usize>) {
        self.read_limit
            .store(bytes.unwrap_or(NO_READ_LIMIT), Ordering::Relaxed);
    }

    /// Whether reading failed because of the bound.
    #[must_use]
    pub fn is_read_limit_reached(&self) -> bool {
        self.read_limit.load(Ordering::Relaxed) == 0
    }

    /// Asks the system, not the runtime's memory of it, whether an idle connection is still open and silent.
    #[must_use]
    pub fn is_idle_and_open(&self) -> bool {
        let is_silent = self.socket.is_open_without_input();
        if self.tls.is_none() {
            return is_silent;
        }
        // A ticket that came after the last answer is no reason to give the connection up; plaintext is, whenever it came.
        (is_silent || self.read_into_tls_from_os().is_ok_and(|is_open| is_open))
            && self
                .peek_plaintext()
                .is_ok_and(|read_outcome| read_outcome == TlsReadOutcome::NeedsInput)
    }

    /// Reads and throws away what is there; `false` at the end of the stream.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn discard(&self, scratch: &mut [u8]) -> io::Result<bool> {
        match self.socket.try_read(scratch) {
            Ok(count) => {
                self.bytes_received
                    .fetch_add(count as u64, Ordering::Relaxed);
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn update_queue_state(&self, queue: &mut BytesMut) {
        if queue.is_empty() && queue.capacity() > RETAINED_QUEUE_BYTES {
            *queue = BytesMut::new();
        }
        self.has_queued_bytes
            .store(!queue.is_empty(), Ordering::Relaxed);
    }

    /// What the session of TLS has to offer.
    fn peek_plaintext(&self) -> io::Result<TlsReadOutcome> {
        self.tls
            .as_ref()
            .map_or(Ok(TlsReadOutcome::NeedsInput), |tls| {
                self.with_tls(tls, TlsSession::peek_plaintext)
            })
    }

    /// Takes in what the socket has, as the runtime knows it; how much that was, if there was anything.
    fn read_into_tls(&self) -> io::Result<Option<usize>> {
        let mut bytes = vec![0; TLS_RECORD_BYTES];
        match self.socket.try_read(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes in what the socket has, as the system knows it; whether it is still open.
    fn read_into_tls_from_os(&self) -> io::Result<bool> {
        let mut bytes = vec![0; TLS_RECORD_BYTES];
        match self.socket.try_read_from_os(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn feed(&self, bytes: &[u8]) -> io::Result<()> {
        self.bytes_received
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.tls.as_ref().map_or(Ok(()), |tls| {
            self.with_tls(tls, |session, queue| session.feed(bytes, queue))
        })
    }

    fn with_tls<T>(
        &self,
        tls: &Mutex<TlsSession>,
        operation: impl FnOnce(&mut TlsSession, &mut BytesMut) -> io::Result<T>,
    ) -> io::Result<T> {
        let (mut session, mut queue) = (lock(tls), lock(&self.queue));
        let result = operation(&mut session, &mut queue);
        self.update_queue_state(&mut queue);
        result
    }
}

impl QueuedStream {
    /// The handle of the connection.
    #[must_use]
    pub fn handle(&self) -> &Arc<ConnectionHandle> {
        &self.handle
    }

    /// Puts bytes back, to be read again first.
    pub fn replay(&mut self, bytes: BytesMut) {
        self.handle
            .has_replay_bytes
            .store(!bytes.is_empty(), Ordering::Relaxed);
        self.replay_bytes = bytes;
    }

    fn poll_read_plain(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        self.handle
            .bytes_received
            .fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_read_tls(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let handle = self.handle.clone();
        let Some(tls) = &handle.tls else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let read_outcome = handle.with_tls(tls, |session, queue| {
                session.read_plaintext(buffer.initialize_unfilled(), queue)
            })?;
            if let TlsReadOutcome::Plaintext(count) = read_outcome {
                buffer.advance(count);
                return Poll::Ready(Ok(()));
            }
            let mut space = [MaybeUninit::<u8>::uninit(); TLS_RECORD_BYTES];
            let mut record = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.reader).poll_read(context, &mut record))?;
            handle.feed(record.filled())?;
        }
    }
}

impl AsyncRead for QueuedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read_limit = self.handle.read_limit.load(Ordering::Relaxed);
        if read_limit == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the head is too long",
            )));
        }
        let before = buffer.filled().len();
        if !self.replay_bytes.is_empty() {
            let count = self.replay_bytes.len().min(buffer.remaining());
            buffer.put_slice(&self.replay_bytes.split_to(count));
            self.handle
                .has_replay_bytes
                .store(!self.replay_bytes.is_empty(), Ordering::Relaxed);
        } else if self.handle.tls.is_some() {
            ready!(self.poll_read_tls(context, buffer))?;
        } else {
            ready!(self.poll_read_plain(context, buffer))?;
        }
        if read_limit != NO_READ_LIMIT {
            self.handle.read_limit.store(
                read_limit.saturating_sub(buffer.filled().len() - before),
                Ordering::Relaxed,
            );
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for QueuedStream {
    /// Queues, and never waits.
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &self.handle.tls {
            Some(tls) => self
                .handle
                .with_tls(tls, |session, queue| session.write_plaintext(bytes, queue))?,
            None => {
                let mut queue = lock(&self.handle.queue);
                queue.extend_from_slice(bytes);
                self.handle.update_queue_state(&mut queue);
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Does nothing: pushing is up to the owner of the exchange.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.handle.tls {
            self.handle.with_tls(tls, TlsSession::send_close_notify)?;
        }
        ready!(self.handle.poll_flush(context))?;
        Poll::Ready(self.handle.socket.shutdown_write())
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Shutdown for QueuedStream {
    async fn shutdown(&mut self) {
        // A connection that is broken is closed already.
        _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for QueuedStream {
    fn id(&self) -> UniqueIDType {
        std::os::fd::AsRawFd::as_raw_fd(&self.handle.socket)
    }
}

impl Ssl for QueuedStream {}

#[async_trait]
impl Peek for QueuedStream {}

impl GetTimingDigest for QueuedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for QueuedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for QueuedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

#[cfg(test)]
mod tests;

//! The transport below a session: a connection whose writes queue.
//!
//! pingora's sessions write and wait until the socket has taken everything. A proxy that waits so cannot read at the same time,
//! and a backend that answers before it has read the request would block both for ever. Here a write only queues, and who
//! owns the exchange pushes the queue out, beside whatever else it waits for: so both directions flow in one task, without
//! splitting the session in two. As a gift, a head and the first bytes of its body leave in one packet.
//!
//! The queue is bounded by its users: nobody writes a chunk before the one before it has been pushed.

use std::{
    io,
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
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::{Reader, Socket, Writer};

/// A queue that has grown beyond this is given back when it is empty.
const KEPT_QUEUE: usize = 16 << 10;

/// No bound on what may be read.
const UNBOUNDED: usize = usize::MAX;

/// The handle of a connection that stays with the exchange while a session owns the stream.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Writer,
    /// Bytes that were written and not yet taken by the socket; guards single appends and takes.
    queue: Mutex<BytesMut>,
    has_queue: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    /// What may still be read before reading fails: the bound on a request's head.
    allowance: AtomicUsize,
}

/// The stream that a session owns.
#[derive(Debug)]
struct Connection {
    reader: Reader,
    wire: Arc<Wire>,
}

/// Takes a connected socket apart into a stream for a session and a handle for the exchange.
pub(super) fn open(socket: Socket) -> (Stream, Arc<Wire>) {
    let (reader, writer) = socket.split();
    let wire = Arc::new(Wire {
        socket: writer,
        queue: Mutex::default(),
        has_queue: AtomicBool::new(false),
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        allowance: AtomicUsize::new(UNBOUNDED),
    });
    (Box::new(Connection { reader, wire: wire.clone() }), wire)
}

impl Wire {
    /// Whether the socket has taken everything that was written.
    pub(super) fn is_pushed(&self) -> bool {
        !self.has_queue.load(Ordering::Relaxed)
    }

    /// Waits until the socket has taken everything that was written. Can be dropped and begun again at any time.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) async fn push(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_push(context)).await
    }

    fn poll_push(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.is_pushed() {
                return Poll::Ready(Ok(()));
            }
            let mut queue = self.lock();
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
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Bytes read from the socket since it was connected.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes taken by the socket since it was connected.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lets reading fail after so many bytes; `None` lifts the bound.
    pub(super) fn allow(&self, bytes: Option<usize>) {
        self.allowance.store(bytes.unwrap_or(UNBOUNDED), Ordering::Relaxed);
    }

    /// Whether reading failed because of the bound.
    pub(super) fn is_allowance_used(&self) -> bool {
        self.allowance.load(Ordering::Relaxed) == 0
    }

    /// Asks the system, not the runtime's memory of it, whether an idle connection is still open and silent.
    pub(super) fn is_idle_and_open(&self) -> bool {
        self.socket.is_silent_and_open()
    }

    /// Reads and throws away what is there; `false` at the end of the stream.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn discard(&self, scratch: &mut [u8]) -> io::Result<bool> {
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

    fn lock(&self) -> MutexGuard<'_, BytesMut> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let allowance = self.wire.allowance.load(Ordering::Relaxed);
        if allowance == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the head is too long")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        let count = buffer.filled().len() - before;
        self.wire.received.fetch_add(count as u64, Ordering::Relaxed);
        if allowance != UNBOUNDED {
            self.wire.allowance.store(allowance.saturating_sub(count), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    /// Queues, and never waits.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut queue = self.wire.lock();
        queue.extend_from_slice(bytes);
        self.wire.note_queue(&mut queue);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Does nothing: pushing is up to the owner of the exchange.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.wire.poll_push(context))?;
        Poll::Ready(self.wire.socket.shutdown())
    }
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

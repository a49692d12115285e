//! A connection whose writes are queued, split into a stream for an HTTP session and a handle
//! for its owner.
//!
//! pingora sessions wait in each write until the socket has accepted all bytes. A proxy that
//! waits like this cannot read at the same time. A backend that responds before it has read the
//! whole request would then block both sides forever. Here a write only appends to a queue. The
//! owner of the request flushes the queue while it also waits for other events, so both
//! directions progress in one task and the session need not be split. In addition, a message
//! head and the first bytes of its body leave in one packet.
//!
//! The module decides when bytes are handed to the socket. It does not know message boundaries.
//! It does not bound the queue either: users must flush one chunk before they write the next.
//! With TLS the queue holds ciphertext; the interface is otherwise the same.

mod handle;

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use crate::transport::queued_stream::handle::{ConnectionHandle, HandshakeOutcome};
use crate::transport::{
    queued_stream::handle::TLS_RECORD_BYTES,
    socket::{Socket, SocketReadHalf},
    tls::{TlsReadOutcome, TlsSession},
};

/// Stream of a connection, for the HTTP session that owns it. Writes are queued and never wait.
#[derive(Debug)]
pub struct QueuedStream {
    reader: SocketReadHalf,
    handle: Arc<ConnectionHandle>,
    /// Bytes that protocol detection has read. Reads return them first.
    replay_bytes: BytesMut,
}

/// Creates the stream of a connected socket. Its owner flushes it through the handle.
///
/// With `tls`, the owner must call [`ConnectionHandle::handshake`] to learn the peer's
/// certificate and protocol.
#[must_use]
pub fn open(socket: Socket, tls: Option<rustls::Connection>) -> QueuedStream {
    let (reader, writer) = socket.split();
    QueuedStream {
        reader,
        handle: Arc::new(ConnectionHandle::new(writer, tls)),
        replay_bytes: BytesMut::new(),
    }
}

impl QueuedStream {
    /// Returns the handle of this connection.
    #[must_use]
    pub fn handle(&self) -> &Arc<ConnectionHandle> {
        &self.handle
    }

    /// Puts bytes back, so that the next reads return them first. Replaces bytes that were put
    /// back earlier.
    pub fn replay(&mut self, bytes: BytesMut) {
        self.handle
            .has_replay_bytes
            .store(!bytes.is_empty(), Ordering::Relaxed);
        self.replay_bytes = bytes;
    }

    /// Appends bytes to the queue. It never waits.
    ///
    /// # Errors
    /// If the TLS session cannot encrypt them.
    pub fn queue(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.handle.tls {
            Some(tls) => self
                .handle
                .with_tls(tls, |session, queue| session.write_plaintext(bytes, queue)),
            None => {
                let mut queue = self.handle.queue.lock();
                queue.extend_from_slice(bytes);
                self.handle.update_queue_state(&mut queue);
                Ok(())
            }
        }
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
        self.handle.ensure_not_shut_down()?;
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
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for QueuedStream {
    /// Appends to the queue and returns at once.
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.queue(bytes)?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// Does nothing: the owner of the connection flushes it through
    /// [`ConnectionHandle::flush`].
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

#[async_trait]
impl Shutdown for QueuedStream {
    async fn shutdown(&mut self) {
        // A broken connection is closed already.
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

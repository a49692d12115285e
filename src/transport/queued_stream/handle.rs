//! The owner's side of a connection: it flushes the queue, and observes the connection while an
//! HTTP session owns the stream.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use crate::transport::{
    socket::SocketWriteHalf,
    tls::{TlsReadOutcome, TlsSession},
};

/// Capacity in bytes above which an empty queue is released instead of retained.
const RETAINED_QUEUE_BYTES: usize = 16 << 10;

/// Buffer size in bytes for one read of ciphertext: the plaintext size of a full TLS record.
pub(super) const TLS_RECORD_BYTES: usize = 16 << 10;

/// Handle of a connection, for its owner. It flushes and observes the connection while an HTTP
/// session owns the stream.
#[derive(Debug)]
pub struct ConnectionHandle {
    pub(super) socket: SocketWriteHalf,
    /// Written bytes that the socket has not accepted yet. The lock guards single appends and
    /// removals.
    pub(super) queue: Mutex<BytesMut>,
    has_queued_bytes: AtomicBool,
    pub(super) has_replay_bytes: AtomicBool,
    awaits_body: AtomicBool,
    is_shut_down: AtomicBool,
    pub(super) bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    /// TLS session; `None` for plaintext connections. The lock guards single reads and writes
    /// and is taken before that of the queue.
    pub(super) tls: Option<Mutex<TlsSession>>,
}

/// Result of a TLS handshake. Both fields are `None` for plaintext connections.
#[derive(Debug, Default)]
pub struct HandshakeOutcome {
    /// ALPN protocol that both sides agreed on; `None` if they agreed on none.
    pub alpn_protocol: Option<Vec<u8>>,
    /// Leaf certificate of the peer; `None` if it presented none.
    pub peer_certificate: Option<CertificateDer<'static>>,
}

/// Clears the announcement of a wait when it is dropped.
struct BodyWait<'h>(&'h AtomicBool);

impl Drop for BodyWait<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl ConnectionHandle {
    pub(super) fn new(socket: SocketWriteHalf, tls: Option<rustls::Connection>) -> Self {
        Self {
            socket,
            queue: Mutex::default(),
            has_queued_bytes: AtomicBool::new(false),
            has_replay_bytes: AtomicBool::new(false),
            awaits_body: AtomicBool::new(false),
            is_shut_down: AtomicBool::new(false),
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            tls: tls.map(|connection| Mutex::new(TlsSession::new(connection))),
        }
    }

    /// Returns `true` if the socket has accepted all written bytes.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        !self.has_queued_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes in the queue; ciphertext if the connection uses TLS.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        if self.is_flushed() {
            0
        } else {
            self.queue.lock().len()
        }
    }

    /// Waits until the socket has accepted all written bytes.
    ///
    /// Cancel safe: a dropped call loses no bytes, and the next call continues.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn flush(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    pub(in crate::transport) fn poll_flush(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.is_flushed() {
                return Poll::Ready(Ok(()));
            }
            let mut queue = self.queue.lock();
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

    /// Waits until plaintext can be read or the peer has closed the connection.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn readable(&self) -> io::Result<()> {
        loop {
            if self.tls.is_none() {
                return self.socket.readable().await;
            }
            // Session tickets and key updates are no plaintext, so the wait continues after
            // them.
            if self.peek_plaintext()? != TlsReadOutcome::NeedsInput {
                return Ok(());
            }
            self.socket.readable().await?;
            self.read_into_tls()?;
        }
    }

    /// Completes the TLS handshake; returns at once for plaintext connections.
    ///
    /// # Errors
    /// If the peer violates the protocol, either side rejects the certificate of the other, or
    /// the peer closes the connection.
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
                let session = tls.lock();
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
                    // Sends the TLS alert, if the peer still reads. The original error matters
                    // more than a failed write.
                    _ = self.flush().await;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until bytes have arrived or the peer has closed the connection, even if the bytes
    /// are no plaintext.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn bytes_arrived(&self) -> io::Result<()> {
        self.socket.bytes_arrived().await
    }

    /// Returns `true` while bytes passed to `QueuedStream::replay` have not been read again.
    #[must_use]
    pub fn has_replay_bytes(&self) -> bool {
        self.has_replay_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes read from the socket since it was connected; ciphertext if
    /// the connection uses TLS.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the socket has accepted since it was connected;
    /// ciphertext if the connection uses TLS.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Returns `true` if the peer provably closed the connection before it received any byte
    /// after the first `sent_before`.
    ///
    /// `sent_before` is an earlier value of [`Self::bytes_sent`].
    ///
    /// A peer that closes a connection sends a FIN segment, which also acknowledges all bytes
    /// that arrived before it. If the FIN has arrived and no byte after `sent_before` is
    /// acknowledged, the peer's application has read none of those bytes. A request that they
    /// contain can be retried safely. A reset proves nothing. The result is also `false` where
    /// the system does not provide the counters.
    #[must_use]
    pub fn peer_closed_before(&self, sent_before: u64) -> bool {
        let Some((acknowledged, received)) = self.socket.tcp_byte_counts() else {
            return false;
        };
        // SYN counts as one acknowledged byte and FIN as one received byte (RFC 9293 section
        // 3.4).
        acknowledged <= sent_before + 1 && received > self.bytes_received()
    }

    /// Makes the close of the connection a TCP reset, so that the peer recognizes an incomplete
    /// message.
    pub fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }

    /// Returns the number of bytes that the peer has acknowledged, or else that the socket has
    /// accepted.
    #[must_use]
    pub fn bytes_acknowledged(&self) -> u64 {
        let counts = self.socket.tcp_byte_counts();
        counts.map_or_else(|| self.bytes_sent(), |(acknowledged, _)| acknowledged)
    }

    /// Closes the socket in both directions at once. The tasks of the connection see its end, and
    /// do not read what the kernel has received.
    pub fn shut_down(&self) {
        self.is_shut_down.store(true, Ordering::Relaxed);
        self.socket.shut_down();
    }

    /// Returns `true` after [`Self::shut_down`].
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(Ordering::Relaxed)
    }

    /// Fails after [`Self::shut_down`], because the kernel would still return received bytes.
    pub(super) fn ensure_not_shut_down(&self) -> io::Result<()> {
        if self.is_shut_down() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Announces that its owner waits for the rest of a message body, until the guard is dropped.
    pub fn announce_body_wait(&self) -> impl Drop + '_ {
        self.awaits_body.store(true, Ordering::Relaxed);
        BodyWait(&self.awaits_body)
    }

    /// Returns `true` while the owner waits for the peer to send the rest of a message body.
    #[must_use]
    pub fn awaits_body(&self) -> bool {
        self.awaits_body.load(Ordering::Relaxed)
    }

    /// Returns `true` if an idle connection is open and no plaintext waits to be read.
    ///
    /// It queries the kernel, because the readiness that tokio has cached can be outdated.
    #[must_use]
    pub fn is_idle_and_open(&self) -> bool {
        let is_silent = self.socket.is_open_without_input();
        if self.tls.is_none() {
            return is_silent;
        }
        // A session ticket after the last response does not make the connection unusable.
        // Unexpected plaintext always does.
        (is_silent || self.read_into_tls_from_os().is_ok_and(|is_open| is_open))
            && self
                .peek_plaintext()
                .is_ok_and(|read_outcome| read_outcome == TlsReadOutcome::NeedsInput)
    }

    /// Reads and discards available socket bytes, at most the length of `scratch`. TLS does not
    /// decrypt them. Returns `false` at the end of the stream.
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

    pub(super) fn update_queue_state(&self, queue: &mut BytesMut) {
        if queue.is_empty() && queue.capacity() > RETAINED_QUEUE_BYTES {
            *queue = BytesMut::new();
        }
        self.has_queued_bytes
            .store(!queue.is_empty(), Ordering::Relaxed);
    }

    /// Returns what the TLS session can deliver without further input.
    fn peek_plaintext(&self) -> io::Result<TlsReadOutcome> {
        self.tls
            .as_ref()
            .map_or(Ok(TlsReadOutcome::NeedsInput), |tls| {
                self.with_tls(tls, TlsSession::peek_plaintext)
            })
    }

    /// Feeds available socket bytes to the TLS session, according to the readiness that tokio
    /// has cached. Returns their number, or `None` if there are none.
    fn read_into_tls(&self) -> io::Result<Option<usize>> {
        self.ensure_not_shut_down()?;
        let mut bytes = vec![0; TLS_RECORD_BYTES];
        match self.socket.try_read(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Feeds available socket bytes to the TLS session, according to the kernel. Returns
    /// whether the connection is still open.
    fn read_into_tls_from_os(&self) -> io::Result<bool> {
        let mut bytes = vec![0; TLS_RECORD_BYTES];
        match self.socket.try_read_from_os(&mut bytes) {
            Ok(count) => self.feed(&bytes[..count]).map(|()| count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(super) fn feed(&self, bytes: &[u8]) -> io::Result<()> {
        self.bytes_received
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.tls.as_ref().map_or(Ok(()), |tls| {
            self.with_tls(tls, |session, queue| session.feed(bytes, queue))
        })
    }

    pub(super) fn with_tls<T>(
        &self,
        tls: &Mutex<TlsSession>,
        operation: impl FnOnce(&mut TlsSession, &mut BytesMut) -> io::Result<T>,
    ) -> io::Result<T> {
        let (mut session, mut queue) = (tls.lock(), self.queue.lock());
        let result = operation(&mut session, &mut queue);
        self.update_queue_state(&mut queue);
        result
    }
}

//! HTTP/2 connections to a backend, which several requests share.
//!
//! The module decides whether a connection accepts another stream and what an error means for
//! the request. It does not open sockets, and does not know requests and responses;
//! `http2_stream` does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use parking_lot::Mutex;

use crate::{
    proxy::wire::{
        events::StreamError,
        http2::{
            MAX_LOCAL_ERROR_RESETS, MAX_TRACKED_RESETS, RESPONSE_HEADER_BYTES_MAX,
            SEND_BUFFER_BYTES, SMALL_FRAME_BUDGET_BYTES, STREAM_WINDOW_BYTES,
            connection_window_bytes,
        },
    },
    state::topology::endpoint::ConnectionGuard,
    transport::{backpressured_stream::BackpressuredStream, queued_stream::ConnectionHandle},
};

/// Maximum number of concurrent streams on a connection. A backend can set a lower maximum.
const MAX_CONCURRENT_STREAMS: u32 = 100;

/// Shared handle of an HTTP/2 connection. The connection closes after its last handle is
/// dropped.
#[derive(Debug, Clone)]
pub(crate) struct Http2Connection {
    request_sender: SendRequest<Bytes>,
    state: Arc<Http2ConnectionState>,
}

#[derive(Debug)]
struct Http2ConnectionState {
    open_streams: AtomicUsize,
    is_closing: AtomicBool,
    /// Time at which a stream last opened or closed. The lock guards single reads and writes.
    last_used: Mutex<Instant>,
    /// Counts the connection against the limits while it is open. The lock guards single takes.
    connection_guard: Mutex<Option<ConnectionGuard>>,
    /// Generation of the TLS material that the connection was opened with; 0 without TLS.
    certificate_generation: u64,
    handle: Arc<ConnectionHandle>,
}

impl Http2Connection {
    /// Performs the HTTP/2 handshake on a new connection and spawns the task that drives it.
    ///
    /// `connection_guard` counts the connection until it closes.
    ///
    /// # Errors
    /// If the connection fails before the handshake is complete.
    pub(crate) async fn handshake(
        connection: BackpressuredStream,
        connection_guard: ConnectionGuard,
        certificate_generation: u64,
        now: Instant,
    ) -> Result<Self, StreamError> {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(connection_window_bytes(MAX_CONCURRENT_STREAMS))
            .data_frame_budget(SMALL_FRAME_BUDGET_BYTES)
            .max_concurrent_reset_streams(MAX_TRACKED_RESETS)
            .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_header_list_size(RESPONSE_HEADER_BYTES_MAX)
            .initial_max_send_streams(MAX_CONCURRENT_STREAMS as usize);
        let handle = connection.0.handle().clone();
        let (send, connection) = builder
            .handshake(connection)
            .await
            .map_err(|error| classify_error(&error))?;
        let state = Arc::new(Http2ConnectionState {
            open_streams: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            last_used: Mutex::new(now),
            connection_guard: Mutex::new(Some(connection_guard)),
            certificate_generation,
            handle,
        });
        let closing_state = state.clone();
        tokio::spawn(async move {
            // Each open stream reports the failure to its own request.
            if let Err(error) = connection.await {
                tracing::debug!("a connection of HTTP/2 ended: {error}");
            }
            closing_state.close();
        });
        Ok(Self {
            request_sender: send,
            state,
        })
    }

    /// Returns whether the connection is below its maximum of concurrent streams.
    pub(crate) fn has_stream_capacity(&self) -> bool {
        let max_streams = self.request_sender.current_max_send_streams();
        self.state.open_streams.load(Ordering::Relaxed)
            < max_streams.min(MAX_CONCURRENT_STREAMS as usize)
    }

    /// Returns whether the connection accepts new streams at all.
    ///
    /// It does not if it is closing or has another TLS generation.
    pub(crate) fn accepts_streams(&self, certificate_generation: u64) -> bool {
        // A connection after GOAWAY stays open for its existing streams. A cloned sender is
        // ready at once or never.
        let can_open_stream = || {
            matches!(
                self.request_sender
                    .clone()
                    .poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Ok(()))
            )
        };
        !self.state.is_closing.load(Ordering::Relaxed)
            && self.state.certificate_generation == certificate_generation
            && can_open_stream()
    }

    /// Returns the time since which the connection has no stream, or `None` if it has one.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.state.open_streams.load(Ordering::Relaxed) == 0).then(|| *self.state.last_used.lock())
    }

    /// Marks the connection as closing and stops counting it, so that another connection can
    /// open.
    ///
    /// It closes shortly after its last handle is dropped.
    pub(crate) fn evict(&self) {
        self.state.close();
    }

    /// Counts one more open stream, without a check of the capacity.
    pub(crate) fn acquire_stream(&self, now: Instant) -> StreamPermit {
        self.state.open_streams.fetch_add(1, Ordering::Relaxed);
        self.state.record_use(now);
        StreamPermit(self.clone())
    }
}

impl Http2ConnectionState {
    fn record_use(&self, now: Instant) {
        *self.last_used.lock() = now;
    }

    fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        self.connection_guard.lock().take();
    }
}

/// Permission for one stream of a connection, which counts as open until the permit is dropped.
#[derive(Debug)]
#[must_use = "a stream is open as long as its permit lives"]
pub(crate) struct StreamPermit(Http2Connection);

impl StreamPermit {
    /// Waits until the connection accepts a request head.
    ///
    /// # Errors
    /// If the connection accepts no more streams.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.0.request_sender.poll_ready(context)
    }

    /// Hands a request head to the h2 crate. `is_end` states that the request has no body.
    ///
    /// # Errors
    /// If the connection accepts no more streams.
    pub(super) fn send_head(
        &mut self,
        head: Request<()>,
        is_end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.0.request_sender.send_request(head, is_end)
    }

    /// Returns the number of bytes that the connection has received, over all its streams.
    pub(super) fn bytes_received(&self) -> u64 {
        self.0.state.handle.bytes_received()
    }

    /// Marks the connection as closing: it accepts no new streams, and existing streams
    /// continue.
    pub(super) fn mark_closing(&self) {
        self.0.state.is_closing.store(true, Ordering::Relaxed);
    }

    /// Classifies an error of the stream. A connection error also stops new streams on the
    /// connection.
    pub(super) fn record_error(&self, error: &h2::Error) -> StreamError {
        if !error.is_reset() {
            self.mark_closing();
        }
        classify_error(error)
    }

    /// Ends the stream and records the time as the connection's last use.
    pub(super) fn release(self, now: Instant) {
        self.0.state.record_use(now);
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.state.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn classify_error(error: &h2::Error) -> StreamError {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => StreamError::Refused,
        // The h2 crate reports this for streams above the last one that the backend processed.
        _ if error.is_go_away() && error.is_remote() => StreamError::Refused,
        Some(_) if error.is_library() => StreamError::Protocol,
        _ => StreamError::Reset,
    }
}

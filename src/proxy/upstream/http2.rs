//! HTTP/2 to a backend: connections that several requests share, and their streams.
//!
//! The module decides whether a connection accepts another stream and what an error means for
//! the request. It does not open sockets and does not retry.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use pingora::http::ResponseHeader;

use crate::{
    proxy::wire::{
        events::{StreamError, UpstreamEvent, UpstreamInterest},
        http2::{
            MAX_LOCAL_ERROR_RESETS, MAX_TRACKED_RESETS, RESPONSE_HEADER_BYTES_MAX,
            SEND_BUFFER_BYTES, SMALL_FRAME_BUDGET_BYTES, STREAM_WINDOW_BYTES,
            connection_window_bytes,
        },
        received_body::ReceivedBody,
        send_queue::{SendQueue, StreamClosed},
    },
    state::topology::endpoint::ConnectionGuard,
    telemetry::reason,
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
        (self.state.open_streams.load(Ordering::Relaxed) == 0).then(|| {
            *self
                .state
                .last_used
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// Marks the connection as closing: it accepts no new streams, and existing streams
    /// continue.
    fn mark_closing(&self) {
        self.state.is_closing.store(true, Ordering::Relaxed);
    }

    /// Marks the connection as closing and stops counting it, so that another connection can
    /// open.
    ///
    /// It closes shortly after its last handle is dropped.
    pub(crate) fn evict(&self) {
        self.state.close();
    }

    /// Opens a stream, without a check of the capacity. It sends nothing until its request head
    /// is flushed.
    pub(crate) fn open_stream(&self, now: Instant) -> ClientStream {
        self.state.open_streams.fetch_add(1, Ordering::Relaxed);
        *self
            .state
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
        ClientStream {
            permit: StreamPermit(self.clone()),
            bytes_received_at_start: self.state.handle.bytes_received(),
            queued_head: None,
            response_future: None,
            stream: None,
            send_queue: SendQueue::default(),
            response_head: None,
            response_body: None,
            send_error: None,
        }
    }
}

impl Http2ConnectionState {
    fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        self.connection_guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Counts one open stream of a connection until it is dropped.
#[derive(Debug)]
struct StreamPermit(Http2Connection);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.state.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request and its response on a shared connection.
#[derive(Debug)]
pub(crate) struct ClientStream {
    permit: StreamPermit,
    /// Bytes that the connection had received when this stream was opened.
    bytes_received_at_start: u64,
    /// Request head, until it is handed to the h2 crate.
    queued_head: Option<Request<()>>,
    response_future: Option<ResponseFuture>,
    stream: Option<SendStream<Bytes>>,
    send_queue: SendQueue,
    response_head: Option<ResponseHeader>,
    response_body: Option<ReceivedBody>,
    /// Why the h2 crate did not accept the request head, if it did not.
    send_error: Option<StreamError>,
}

impl ClientStream {
    /// Queues the request head for the next flush.
    pub(crate) fn write_head(&mut self, head: Request<()>) {
        self.queued_head = Some(head);
    }

    /// Queues a chunk of the request body for the next flush.
    pub(crate) fn write(&mut self, piece: Bytes) {
        self.send_queue.write(piece);
    }

    /// Queues the end of the request, with its trailers if there are any.
    pub(crate) fn finish(&mut self, trailers: Option<HeaderMap>) {
        self.send_queue.finish(trailers);
    }

    /// Returns whether the h2 crate has accepted all queued output.
    pub(crate) fn is_flushed(&self) -> bool {
        self.queued_head.is_none() && self.send_queue.is_empty()
    }

    /// Returns whether the backend may have received any part of the request.
    pub(crate) fn has_sent_request(&self) -> bool {
        self.response_future.is_some() || self.response_head.is_some()
    }

    /// Waits for the next event of interest, and flushes queued output if `may_flush` is set.
    ///
    /// Cancel safe: a dropped call loses no data.
    pub(crate) async fn next_event(
        &mut self,
        interest: UpstreamInterest,
        may_flush: bool,
    ) -> UpstreamEvent {
        poll_fn(|context| {
            let poll_flushed = |stream: &mut Self, context: &mut Context<'_>| match may_flush
                && !stream.is_flushed()
            {
                true => stream
                    .poll_flush(context)
                    .map(|flushed| UpstreamEvent::Flushed(flushed.is_ok())),
                false => Poll::Pending,
            };
            if interest != UpstreamInterest::Head
                && let Poll::Ready(event) = poll_flushed(self, context)
            {
                return Poll::Ready(event);
            }
            let read = match interest {
                UpstreamInterest::Head => self.poll_head(context).map(UpstreamEvent::Head),
                UpstreamInterest::Body => self.poll_read(context).map(|read| {
                    UpstreamEvent::Body(read.map_err(|_| reason::Reason::UpstreamReset))
                }),
                UpstreamInterest::Nothing => Poll::Pending,
            };
            if read.is_pending() && interest == UpstreamInterest::Head {
                poll_flushed(self, context)
            } else {
                read
            }
        })
        .await
    }

    /// Returns the response head that was read last, which can be interim.
    pub(crate) fn head(&self) -> Option<&ResponseHeader> {
        self.response_head.as_ref()
    }

    /// Returns whether the response has been read to its end.
    pub(crate) fn is_body_done(&self) -> bool {
        self.response_body
            .as_ref()
            .is_some_and(ReceivedBody::is_done)
    }

    /// Returns the trailers of the response, once its end has been read.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.response_body.as_ref()?.trailers()
    }

    /// Records that the response timed out.
    ///
    /// If the connection has received no byte since the stream opened, it may be dead, so it
    /// accepts no new streams. If a network silently drops packets, TCP reports an error only
    /// after about 15 minutes.
    pub(crate) fn record_timeout(&self) {
        let shared = &self.permit.0;
        if shared.state.handle.bytes_received() == self.bytes_received_at_start {
            shared.mark_closing();
        }
    }

    /// Releases the stream and records the time as the connection's last use.
    pub(crate) fn release(self, now: Instant) {
        *self
            .permit
            .0
            .state
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamClosed>> {
        if self.queued_head.is_some() {
            let ready = ready!(self.permit.0.request_sender.poll_ready(context));
            let is_end = self.send_queue.is_end_of_stream_only();
            let sent = match (ready, self.queued_head.take()) {
                (Ok(()), Some(request)) => {
                    self.permit.0.request_sender.send_request(request, is_end)
                }
                (Err(error), _) => Err(error),
                (Ok(()), None) => return Poll::Ready(Ok(())),
            };
            match sent {
                Ok((response, stream)) => {
                    self.response_future = Some(response);
                    self.stream = Some(stream);
                    if is_end {
                        self.send_queue.mark_end_sent();
                    }
                }
                Err(error) => {
                    // The h2 crate accepted nothing of the request, and the connection accepts
                    // no more streams.
                    tracing::debug!("a connection of HTTP/2 takes no more requests: {error}");
                    self.permit.0.mark_closing();
                    self.send_error = Some(StreamError::Refused);
                    return Poll::Ready(Err(StreamClosed));
                }
            }
        }
        match &mut self.stream {
            Some(stream) => self.send_queue.poll_flush(stream, context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Some(error) = self.send_error {
            return Poll::Ready(Err(error));
        }
        // Before the request head is handed over there is no response to poll. The flush that
        // hands it over leads to another poll.
        let Some(response) = &mut self.response_future else {
            return Poll::Pending;
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(context) {
            let interim = interim.map_err(|error| self.permit.0.record_error(&error))?;
            self.response_head = Some(interim.into_parts().0.into());
            return Poll::Ready(Ok(()));
        }
        let response = ready!(Pin::new(response).poll(context))
            .map_err(|error| self.permit.0.record_error(&error))?;
        let (parts, body) = response.into_parts();
        self.response_head = Some(parts.into());
        self.response_body = Some(ReceivedBody::new(body));
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match &mut self.response_body {
            Some(body) => body
                .poll_read(context)
                .map_err(|error| self.permit.0.record_error(&error)),
            None => Poll::Ready(Ok(None)),
        }
    }
}

impl Http2Connection {
    /// Classifies an error of a stream. A connection error also stops new streams on the
    /// connection.
    fn record_error(&self, error: &h2::Error) -> StreamError {
        if !error.is_reset() {
            self.mark_closing();
        }
        classify_error(error)
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

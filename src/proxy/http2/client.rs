//! A stream to a backend, and the connection that it shares with others.

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
    Reason, RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use pingora::http::ResponseHeader;

use super::{
    super::upstream::{Await, UpstreamEvent},
    FORGIVEN_FRAMES, HEAD_BYTES, REMEMBERED_RESETS, SEND_BUFFER, SMALL_FRAMES, STREAM_WINDOW,
    connection_window,
    outgoing::{Gone, Outgoing},
};
use crate::{
    state::endpoint::ConnectionGuard,
    telemetry::reason,
    transport::{paced::Paced, wire::Wire},
};

/// Requests at once on a connection, or fewer if the backend says so.
const MAX_STREAMS: u32 = 100;

/// A connection that several requests share.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Shared {
    send: SendRequest<Bytes>,
    state: Arc<SharedState>,
}

#[derive(Debug)]
struct SharedState {
    streams: AtomicUsize,
    is_over: AtomicBool,
    /// When a request last began or ended; guards single reads and writes.
    used: Mutex<Instant>,
    /// Counts the connection while it is open; guards single takes.
    counted: Mutex<Option<ConnectionGuard>>,
    /// Of the certificates that it was made under.
    generation: u64,
    wire: Arc<Wire>,
}

/// How a stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Fault {
    /// The backend says that it did not look at the request.
    Refused,
    /// Cut off.
    Reset,
    /// Not HTTP/2.
    Protocol,
}

impl Shared {
    /// Begins HTTP/2 on a new connection; `guard` counts it until it ends.
    pub(in crate::proxy) async fn open(
        connection: Paced,
        guard: ConnectionGuard,
        generation: u64,
        now: Instant,
    ) -> Result<Self, Fault> {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(MAX_STREAMS))
            .data_frame_budget(SMALL_FRAMES)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .max_local_error_reset_streams(Some(FORGIVEN_FRAMES))
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEAD_BYTES)
            .initial_max_send_streams(MAX_STREAMS as usize);
        let wire = connection.0.wire().clone();
        let (send, connection) = builder
            .handshake(connection)
            .await
            .map_err(|error| fault(&error))?;
        let state = Arc::new(SharedState {
            streams: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            used: Mutex::new(now),
            counted: Mutex::new(Some(guard)),
            generation,
            wire,
        });
        let ending = state.clone();
        tokio::spawn(async move {
            // Whoever has a stream on it is told by the stream.
            if let Err(error) = connection.await {
                tracing::debug!("a connection of HTTP/2 ended: {error}");
            }
            ending.end();
        });
        Ok(Self { send, state })
    }

    /// Whether it can take one more request, made under certificates of this generation.
    pub(in crate::proxy) fn is_free(&self, generation: u64) -> bool {
        self.is_open(generation)
            && self.state.streams.load(Ordering::Relaxed)
                < self
                    .send
                    .current_max_send_streams()
                    .min(MAX_STREAMS as usize)
    }

    /// Whether it takes requests at all.
    pub(in crate::proxy) fn is_open(&self, generation: u64) -> bool {
        // One that has announced its end lives on for the streams it has. A fresh handle is ready or never will be.
        let takes_more = || {
            matches!(
                self.send
                    .clone()
                    .poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Ok(()))
            )
        };
        !self.state.is_over.load(Ordering::Relaxed)
            && self.state.generation == generation
            && takes_more()
    }

    /// Since when it has been idle.
    pub(in crate::proxy) fn idle_since(&self) -> Option<Instant> {
        (self.state.streams.load(Ordering::Relaxed) == 0).then(|| {
            *self
                .state
                .used
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// Says that no more requests should be made on it.
    pub(in crate::proxy) fn give_up(&self) {
        self.state.is_over.store(true, Ordering::Relaxed);
    }

    /// Says so, and gives its place under the bounds to another. It closes by itself a moment after nobody holds it.
    pub(in crate::proxy) fn make_room(&self) {
        self.state.end();
    }

    /// Takes a place on it.
    pub(in crate::proxy) fn exchange(&self, now: Instant) -> Exchange {
        self.state.streams.fetch_add(1, Ordering::Relaxed);
        *self
            .state
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
        Exchange {
            shared: Place(self.clone()),
            received_before: self.state.wire.received(),
            request: None,
            response: None,
            stream: None,
            outgoing: Outgoing::default(),
            head: None,
            body: None,
            is_body_done: false,
            trailers: None,
            fault: None,
        }
    }
}

impl SharedState {
    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// A place on a connection, given back when it is dropped.
#[derive(Debug)]
struct Place(Shared);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request and its answer.
#[derive(Debug)]
pub(in crate::proxy) struct Exchange {
    shared: Place,
    /// What the connection had received when the exchange began.
    received_before: u64,
    /// The head of the request, until it is sent.
    request: Option<Request<()>>,
    response: Option<ResponseFuture>,
    stream: Option<SendStream<Bytes>>,
    outgoing: Outgoing,
    head: Option<ResponseHeader>,
    body: Option<RecvStream>,
    is_body_done: bool,
    trailers: Option<HeaderMap>,
    /// Why the request could not be handed over.
    fault: Option<Fault>,
}

impl Exchange {
    /// Queues the head of the request.
    pub(in crate::proxy) fn write_head(&mut self, head: Request<()>) {
        self.request = Some(head);
    }

    /// Queues a piece of the request's body.
    pub(in crate::proxy) fn write(&mut self, piece: Bytes) {
        self.outgoing.write(piece);
    }

    /// Queues the end of the request.
    pub(in crate::proxy) fn finish(&mut self, trailers: Option<HeaderMap>) {
        self.outgoing.finish(trailers);
    }

    /// Whether everything was handed over.
    pub(in crate::proxy) fn is_pushed(&self) -> bool {
        self.request.is_none() && self.outgoing.is_empty()
    }

    /// Whether the request may have left.
    pub(in crate::proxy) fn has_sent(&self) -> bool {
        self.response.is_some() || self.head.is_some()
    }

    /// Waits for what happens next.
    pub(in crate::proxy) async fn next(&mut self, wanted: Await, may_push: bool) -> UpstreamEvent {
        poll_fn(|context| {
            let has_pushed = |exchange: &mut Self, context: &mut Context<'_>| match may_push
                && !exchange.is_pushed()
            {
                true => exchange
                    .poll_push(context)
                    .map(|pushed| UpstreamEvent::Pushed(pushed.is_ok())),
                false => Poll::Pending,
            };
            if wanted != Await::Head
                && let Poll::Ready(event) = has_pushed(self, context)
            {
                return Poll::Ready(event);
            }
            let read = match wanted {
                Await::Head => self.poll_head(context).map(UpstreamEvent::Head),
                Await::Body => self.poll_read(context).map(|read| {
                    UpstreamEvent::Body(read.map_err(|_| reason::Reason::UpstreamReset))
                }),
                Await::Nothing => Poll::Pending,
            };
            if read.is_pending() && wanted == Await::Head {
                has_pushed(self, context)
            } else {
                read
            }
        })
        .await
    }

    /// The head that was read last.
    pub(in crate::proxy) fn head(&self) -> Option<&ResponseHeader> {
        self.head.as_ref()
    }

    /// Whether the answer has been read to its end.
    pub(in crate::proxy) fn is_body_done(&self) -> bool {
        self.is_body_done
    }

    /// The trailers of the answer, if it had some.
    pub(in crate::proxy) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Takes note that no answer came in time. If nothing at all has come on the connection since, it may be dead, and nobody else should wait
    /// on it to find out; a network that drops packets silently says nothing for a quarter of an hour.
    pub(in crate::proxy) fn timed_out(&self) {
        let shared = &self.shared.0;
        if shared.state.wire.received() == self.received_before {
            shared.give_up();
        }
    }

    /// Tells when the exchange ended.
    pub(in crate::proxy) fn end(self, now: Instant) {
        *self
            .shared
            .0
            .state
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn poll_push(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.request.is_some() {
            let ready = ready!(self.shared.0.send.poll_ready(context));
            let is_end = self.outgoing.is_only_the_end();
            let sent = match (ready, self.request.take()) {
                (Ok(()), Some(request)) => self.shared.0.send.send_request(request, is_end),
                (Err(error), _) => Err(error),
                (Ok(()), None) => return Poll::Ready(Ok(())),
            };
            match sent {
                Ok((response, stream)) => {
                    self.response = Some(response);
                    self.stream = Some(stream);
                    if is_end {
                        self.outgoing.ended();
                    }
                }
                Err(error) => {
                    // Nothing of the request was handed over; the connection takes no more.
                    tracing::debug!("a connection of HTTP/2 takes no more requests: {error}");
                    self.shared.0.give_up();
                    self.fault = Some(Fault::Refused);
                    return Poll::Ready(Err(Gone));
                }
            }
        }
        match &mut self.stream {
            Some(stream) => self.outgoing.poll_push(stream, context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        // Until the request is handed over there is nothing to wait for; who pushes it asks again.
        let Some(response) = &mut self.response else {
            return Poll::Pending;
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(context) {
            let interim = interim.map_err(|error| self.shared.0.judge(&error))?;
            self.head = Some(interim.into_parts().0.into());
            return Poll::Ready(Ok(()));
        }
        let answer = ready!(Pin::new(response).poll(context))
            .map_err(|error| self.shared.0.judge(&error))?;
        let (parts, body) = answer.into_parts();
        self.is_body_done = body.is_end_stream();
        self.head = Some(parts.into());
        self.body = Some(body);
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        let Some(body) = self.body.as_mut().filter(|_| !self.is_body_done) else {
            return Poll::Ready(Ok(None));
        };
        match ready!(body.poll_data(context)) {
            Some(Ok(piece)) => {
                // It is held by us now, one piece at a time, so that the sender may go on.
                _ = body.flow_control().release_capacity(piece.len());
                self.is_body_done = body.is_end_stream();
                Poll::Ready(Ok(Some(piece)))
            }
            Some(Err(error)) => Poll::Ready(Err(self.shared.0.judge(&error))),
            None => {
                self.trailers = ready!(body.poll_trailers(context))
                    .map_err(|error| self.shared.0.judge(&error))?;
                self.is_body_done = true;
                Poll::Ready(Ok(None))
            }
        }
    }
}

impl Shared {
    /// What an error means; one of the whole connection ends its use.
    fn judge(&self, error: &h2::Error) -> Fault {
        if !error.is_reset() {
            self.give_up();
        }
        fault(error)
    }
}

fn fault(error: &h2::Error) -> Fault {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Fault::Refused,
        // The h2 crate tells this to streams above the last one that the backend looked at.
        _ if error.is_go_away() && error.is_remote() => Fault::Refused,
        Some(_) if error.is_library() => Fault::Protocol,
        _ => Fault::Reset,
    }
}

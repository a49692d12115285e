//! The backend's side of an exchange, whatever it speaks.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::HeaderMap;
use pingora::{ErrorType, http::ResponseHeader, protocols::http::v1::client::HttpSession};

use super::{
    headers::{self, RequestHead},
    http2::{self, client::Fault},
    pool::Idle,
    rejection::Rejection,
    worker::Worker,
};
use crate::{
    state::endpoint::{ConnectionGuard, EndpointState},
    telemetry::reason::Reason,
    transport::wire::Wire,
};

/// A connection to an endpoint, or a stream on one, with one exchange on it.
pub(super) struct Upstream {
    stream: UpstreamStream,
    /// The endpoint.
    endpoint: Arc<EndpointState>,
}

enum UpstreamStream {
    Http1(Http1),
    Http2(Box<http2::client::Exchange>),
}

/// A session of HTTP/1 on a connection of its own.
struct Http1 {
    /// Boxed, because it is handed on from step to step.
    session: Box<HttpSession>,
    wire: Arc<Wire>,
    guard: ConnectionGuard,
    generation: u64,
    /// What the wire had sent before this exchange.
    sent_before: u64,
}

impl Upstream {
    pub(super) fn http1(connection: Idle, endpoint: Arc<EndpointState>) -> Self {
        let Idle {
            stream,
            wire,
            guard,
            generation,
        } = connection;
        let http1 = Http1 {
            session: Box::new(HttpSession::new(stream)),
            sent_before: wire.sent(),
            wire,
            guard,
            generation,
        };
        Self {
            stream: UpstreamStream::Http1(http1),
            endpoint,
        }
    }

    pub(super) fn http2(exchange: http2::client::Exchange, endpoint: Arc<EndpointState>) -> Self {
        Self {
            stream: UpstreamStream::Http2(Box::new(exchange)),
            endpoint,
        }
    }

    /// Queues the head of a request.
    pub(super) async fn write_head(&mut self, head: RequestHead<'_>) -> Result<(), Rejection> {
        let internal = || Rejection::of(Reason::InternalError);
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let head = head.http1().map_err(|_| internal())?;
                http1
                    .session
                    .write_request_header(head)
                    .await
                    .map(drop)
                    .map_err(|_| internal())
            }
            UpstreamStream::Http2(exchange) => {
                // A target that HTTP/1 can carry and HTTP/2 cannot is the client's.
                exchange.write_head(
                    head.http2()
                        .map_err(|_| Rejection::of(Reason::BadRequest))?,
                );
                Ok(())
            }
        }
    }

    /// Queues a piece of the request.
    pub(super) async fn write(&mut self, piece: &Bytes) -> Result<(), Rejection> {
        match &mut self.stream {
            // A session may read nothing at all, as when a chunk's size came without its bytes; as a chunk that would be the end.
            UpstreamStream::Http1(_) if piece.is_empty() => Ok(()),
            UpstreamStream::Http1(http1) => http1
                .session
                .write_body(piece)
                .await
                .map(drop)
                .map_err(|_| Rejection::of(Reason::InternalError)),
            UpstreamStream::Http2(exchange) => {
                exchange.write(piece.clone());
                Ok(())
            }
        }
    }

    /// Queues the end of the request. Trailers do not pass HTTP/1.
    pub(super) async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Rejection> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1
                .session
                .finish_body()
                .await
                .map(drop)
                .map_err(|_| Rejection::of(Reason::InternalError)),
            UpstreamStream::Http2(exchange) => {
                exchange.finish(trailers);
                Ok(())
            }
        }
    }

    /// Queues bytes of a tunnel.
    pub(super) async fn write_raw(&mut self, bytes: &Bytes) -> Result<(), Reason> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1
                .session
                .write_body(bytes)
                .await
                .map(drop)
                .map_err(|_| Reason::UpstreamReset),
            UpstreamStream::Http2(_) => Err(Reason::UpstreamProtocolError),
        }
    }

    /// Whether the backend has taken everything that was queued.
    pub(super) fn is_pushed(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.wire.is_pushed(),
            UpstreamStream::Http2(exchange) => exchange.is_pushed(),
        }
    }

    /// Waits for what happens next: what is wanted of the answer comes, or the backend takes what is queued for it. Can be dropped and
    /// begun again at any time.
    pub(super) async fn next(&mut self, wanted: Await, may_push: bool) -> UpstreamEvent {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1.next(wanted, may_push).await,
            UpstreamStream::Http2(exchange) => exchange.next(wanted, may_push).await,
        }
    }

    /// The head that was read last.
    pub(super) fn head(&self) -> Option<&ResponseHeader> {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.session.resp_header(),
            UpstreamStream::Http2(exchange) => exchange.head(),
        }
    }

    /// Whether any byte of this exchange's request may have been read by the backend.
    pub(super) fn has_sent(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => {
                http1.wire.sent() > http1.sent_before
                    && !http1.wire.closed_before(http1.sent_before)
            }
            UpstreamStream::Http2(exchange) => exchange.has_sent(),
        }
    }

    /// Takes note that no answer came in time.
    pub(super) fn timed_out(&self) {
        if let UpstreamStream::Http2(exchange) = &self.stream {
            exchange.timed_out();
        }
    }

    /// Whether both sides now speak something else than HTTP.
    pub(super) fn was_upgraded(&self) -> bool {
        matches!(&self.stream, UpstreamStream::Http1(http1) if http1.session.was_upgraded())
    }

    /// From here on bytes are written as they are.
    pub(super) fn become_tunnel(&mut self) {
        if let UpstreamStream::Http1(http1) = &mut self.stream {
            http1.session.maybe_upgrade_body_writer();
        }
    }

    /// Whether the answer has been read to its end.
    pub(super) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1.session.is_body_done(),
            UpstreamStream::Http2(exchange) => exchange.is_body_done(),
        }
    }

    /// Reads a piece of the answer; `None` at its end.
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        match self.next(Await::Body, false).await {
            UpstreamEvent::Body(read) => read,
            UpstreamEvent::Head(_) | UpstreamEvent::Pushed(_) => Err(Reason::InternalError),
        }
    }

    /// The trailers of the answer, if it had some that are passed on.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.stream {
            UpstreamStream::Http1(_) => None,
            UpstreamStream::Http2(exchange) => exchange.trailers(),
        }
    }

    /// Gives the connection back to the pool if its exchange is complete on both sides; else it is closed, or the stream is reset.
    pub(super) async fn release(self, worker: &Worker, is_request_complete: bool, now: Instant) {
        let mut http1 = match self.stream {
            UpstreamStream::Http1(http1) => http1,
            UpstreamStream::Http2(exchange) => return exchange.end(now),
        };
        if !is_request_complete || !http1.wire.is_pushed() || !http1.session.is_body_done() {
            return;
        }
        if let Some(hint) = http1
            .session
            .resp_header()
            .and_then(headers::keep_alive_hint)
        {
            self.endpoint.learn_idle_close(hint, now);
        }
        http1.session.respect_keepalive();
        if let Some(stream) = http1.session.reuse().await {
            let idle = Idle {
                stream,
                wire: http1.wire,
                guard: http1.guard,
                generation: http1.generation,
            };
            worker.pool().put(&self.endpoint, idle, now);
        }
    }
}

impl Http1 {
    async fn next(&mut self, wanted: Await, may_push: bool) -> UpstreamEvent {
        let Self { session, wire, .. } = self;
        let read = async {
            match wanted {
                Await::Head => {
                    UpstreamEvent::Head(session.read_response().await.map(drop).map_err(|error| {
                        match error.etype {
                            ErrorType::InvalidHTTPHeader => Fault::Protocol,
                            _ => Fault::Reset,
                        }
                    }))
                }
                Await::Body => UpstreamEvent::Body(
                    session
                        .read_body_bytes()
                        .await
                        .map_err(|_| Reason::UpstreamReset),
                ),
                Await::Nothing => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // A backend that floods us must not keep its own side of a tunnel waiting. Before the answer it is the other way round: what
            // a backend has said before it closed counts, even if it takes no more.
            pushed = wire.push(), if wanted != Await::Head && may_push && !wire.is_pushed() => UpstreamEvent::Pushed(pushed.is_ok()),
            event = read => event,
            pushed = wire.push(), if wanted == Await::Head && may_push && !wire.is_pushed() => UpstreamEvent::Pushed(pushed.is_ok()),
        }
    }
}

/// What is waited for of a backend, besides its taking what is queued for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Await {
    /// The head of its answer, or of an interim one.
    Head,
    /// More of its answer.
    Body,
    /// Nothing.
    Nothing,
}

/// What a backend did.
pub(super) enum UpstreamEvent {
    /// A head came.
    Head(Result<(), Fault>),
    /// A piece of the answer came, or its end.
    Body(Result<Option<Bytes>, Reason>),
    /// Whether it took what was queued for it.
    Pushed(bool),
}

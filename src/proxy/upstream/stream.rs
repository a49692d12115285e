//! The backend's side of an exchange, whatever it speaks.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use pingora::{ErrorType, http::ResponseHeader, protocols::http::v1::client::HttpSession};

use crate::{
    proxy::{
        upstream::{
            http2::ClientStream, pool::PooledConnection, request_head::RequestHead, worker::Worker,
        },
        wire::events::{StreamError, UpstreamEvent, UpstreamInterest},
    },
    state::topology::endpoint::{ConnectionGuard, EndpointState},
    telemetry::reason::Reason,
    transport::queued_stream::ConnectionHandle,
};

/// A connection to an endpoint, or a stream on one, with one exchange on it.
pub(crate) struct Upstream {
    stream: UpstreamStream,
    /// The endpoint.
    endpoint: Arc<EndpointState>,
}

/// Why a request could not be queued towards a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The request target of the client cannot be expressed in HTTP/2.
    InvalidTarget,
    /// A session refused what the proxy itself had built.
    Internal,
}

enum UpstreamStream {
    Http1(UpstreamHttp1),
    Http2(Box<ClientStream>),
}

/// A session of HTTP/1 on a connection of its own.
struct UpstreamHttp1 {
    /// Boxed, because it is handed on from step to step.
    session: Box<HttpSession>,
    handle: Arc<ConnectionHandle>,
    connection_guard: ConnectionGuard,
    certificate_generation: u64,
    /// What the wire had sent before this exchange.
    bytes_sent_at_start: u64,
}

impl Upstream {
    pub(crate) fn from_http1(connection: PooledConnection, endpoint: Arc<EndpointState>) -> Self {
        let PooledConnection {
            stream,
            handle,
            connection_guard,
            certificate_generation,
        } = connection;
        let http1 = UpstreamHttp1 {
            session: Box::new(HttpSession::new(stream)),
            bytes_sent_at_start: handle.bytes_sent(),
            handle,
            connection_guard,
            certificate_generation,
        };
        Self {
            stream: UpstreamStream::Http1(http1),
            endpoint,
        }
    }

    pub(crate) fn from_http2(stream: ClientStream, endpoint: Arc<EndpointState>) -> Self {
        Self {
            stream: UpstreamStream::Http2(Box::new(stream)),
            endpoint,
        }
    }

    /// Queues the head of a request.
    pub(crate) async fn write_head(&mut self, head: RequestHead<'_>) -> Result<(), WriteError> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let head = head.into_http1().map_err(|_| WriteError::Internal)?;
                http1
                    .session
                    .write_request_header(head)
                    .await
                    .map(drop)
                    .map_err(|_| WriteError::Internal)
            }
            UpstreamStream::Http2(stream) => {
                // A target that HTTP/1 can carry and HTTP/2 cannot is the client's.
                stream.write_head(head.into_http2().map_err(|_| WriteError::InvalidTarget)?);
                Ok(())
            }
        }
    }

    /// Queues a piece of the request.
    pub(crate) async fn write(&mut self, piece: &Bytes) -> Result<(), WriteError> {
        match &mut self.stream {
            // A session may read nothing at all, as when a chunk's size came without its bytes; as a chunk that would be the end.
            UpstreamStream::Http1(_) if piece.is_empty() => Ok(()),
            UpstreamStream::Http1(http1) => http1
                .session
                .write_body(piece)
                .await
                .map(drop)
                .map_err(|_| WriteError::Internal),
            UpstreamStream::Http2(stream) => {
                stream.write(piece.clone());
                Ok(())
            }
        }
    }

    /// Queues the end of the request. Trailers do not pass HTTP/1.
    pub(crate) async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), WriteError> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1
                .session
                .finish_body()
                .await
                .map(drop)
                .map_err(|_| WriteError::Internal),
            UpstreamStream::Http2(stream) => {
                stream.finish(trailers);
                Ok(())
            }
        }
    }

    /// Queues a chunk that was read from the client, and the end of the request once it is complete.
    pub(crate) async fn forward(
        &mut self,
        chunk: Option<&Bytes>,
        is_done: bool,
        trailers: Option<&HeaderMap>,
    ) -> Result<(), WriteError> {
        if let Some(chunk) = chunk {
            self.write(chunk).await?;
        }
        if is_done {
            self.finish(trailers.cloned()).await
        } else {
            Ok(())
        }
    }

    /// Queues bytes of a tunnel.
    pub(crate) async fn write_tunnel_bytes(&mut self, bytes: &Bytes) -> Result<(), Reason> {
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
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.handle.is_flushed(),
            UpstreamStream::Http2(stream) => stream.is_flushed(),
        }
    }

    /// Waits for what happens next: what is wanted of the answer comes, or the backend takes what is queued for it. Can be dropped and
    /// begun again at any time.
    pub(crate) async fn next_event(
        &mut self,
        interest: UpstreamInterest,
        may_flush: bool,
    ) -> UpstreamEvent {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1.next_event(interest, may_flush).await,
            UpstreamStream::Http2(stream) => stream.next_event(interest, may_flush).await,
        }
    }

    /// The head that was read last.
    pub(crate) fn head(&self) -> Option<&ResponseHeader> {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.session.resp_header(),
            UpstreamStream::Http2(stream) => stream.head(),
        }
    }

    /// Whether any byte of this exchange's request may have been read by the backend.
    pub(crate) fn has_sent_request(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => {
                http1.handle.bytes_sent() > http1.bytes_sent_at_start
                    && !http1.handle.peer_closed_before(http1.bytes_sent_at_start)
            }
            UpstreamStream::Http2(stream) => stream.has_sent_request(),
        }
    }

    /// Takes note that no answer came in time.
    pub(crate) fn record_timeout(&self) {
        if let UpstreamStream::Http2(stream) = &self.stream {
            stream.record_timeout();
        }
    }

    /// Whether both sides now speak something else than HTTP.
    pub(crate) fn was_upgraded(&self) -> bool {
        matches!(&self.stream, UpstreamStream::Http1(http1) if http1.session.was_upgraded())
    }

    /// From here on bytes are written as they are.
    pub(crate) fn switch_to_tunnel(&mut self) {
        if let UpstreamStream::Http1(http1) = &mut self.stream {
            http1.session.maybe_upgrade_body_writer();
        }
    }

    /// Whether the answer has been read to its end.
    pub(crate) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1.session.is_body_done(),
            UpstreamStream::Http2(stream) => stream.is_body_done(),
        }
    }

    /// Returns the next chunk if it is ready, without waiting.
    pub(crate) async fn read_ready(&mut self) -> Option<Result<Option<Bytes>, Reason>> {
        let mut read = pin!(self.read());
        poll_fn(|context| match read.as_mut().poll(context) {
            Poll::Ready(chunk) => Poll::Ready(Some(chunk)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// Reads a piece of the answer; `None` at its end.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        match self.next_event(UpstreamInterest::Body, false).await {
            UpstreamEvent::Body(read) => read,
            UpstreamEvent::Head(_) | UpstreamEvent::Flushed(_) => Err(Reason::InternalError),
        }
    }

    /// The trailers of the answer, if it had some that are passed on.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.stream {
            UpstreamStream::Http1(_) => None,
            UpstreamStream::Http2(stream) => stream.trailers(),
        }
    }

    /// Gives the connection back to the pool if its exchange is complete on both sides; else it is closed, or the stream is reset.
    pub(crate) async fn release(self, worker: &Worker, is_request_complete: bool, now: Instant) {
        let mut http1 = match self.stream {
            UpstreamStream::Http1(http1) => http1,
            UpstreamStream::Http2(exchange) => return exchange.release(now),
        };
        if !is_request_complete || !http1.handle.is_flushed() || !http1.session.is_body_done() {
            return;
        }
        if let Some(hint) = http1
            .session
            .resp_header()
            .and_then(parse_keep_alive_timeout)
        {
            self.endpoint.record_idle_close(hint, now);
        }
        http1.session.respect_keepalive();
        if let Some(stream) = http1.session.reuse().await {
            let pooled = PooledConnection {
                stream,
                handle: http1.handle,
                connection_guard: http1.connection_guard,
                certificate_generation: http1.certificate_generation,
            };
            worker.pool().put(&self.endpoint, pooled, now);
        }
    }
}

impl UpstreamHttp1 {
    async fn next_event(&mut self, interest: UpstreamInterest, may_flush: bool) -> UpstreamEvent {
        let Self {
            session, handle, ..
        } = self;
        let read = async {
            match interest {
                UpstreamInterest::Head => {
                    UpstreamEvent::Head(session.read_response().await.map(drop).map_err(|error| {
                        match error.etype {
                            ErrorType::InvalidHTTPHeader => StreamError::Protocol,
                            _ => StreamError::Reset,
                        }
                    }))
                }
                UpstreamInterest::Body => UpstreamEvent::Body(
                    session
                        .read_body_bytes()
                        .await
                        .map_err(|_| Reason::UpstreamReset),
                ),
                UpstreamInterest::Nothing => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // A backend that floods us must not keep its own side of a tunnel waiting. Before the answer it is the other way round: what
            // a backend has said before it closed counts, even if it takes no more.
            flushed = handle.flush(), if interest != UpstreamInterest::Head && may_flush && !handle.is_flushed() => UpstreamEvent::Flushed(flushed.is_ok()),
            event = read => event,
            flushed = handle.flush(), if interest == UpstreamInterest::Head && may_flush && !handle.is_flushed() => UpstreamEvent::Flushed(flushed.is_ok()),
        }
    }
}

/// The time that a backend states to keep an idle connection open (`keep-alive: timeout=N`).
fn parse_keep_alive_timeout(head: &ResponseHeader) -> Option<Duration> {
    let value: &HeaderValue = head.headers.get("keep-alive")?;
    let seconds = value
        .to_str()
        .ok()?
        .split(',')
        .find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

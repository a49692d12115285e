//! The backend's side of one request, independent of the HTTP version.
//!
//! The module hides whether a request has its own HTTP/1 connection or a stream on a shared
//! HTTP/2 connection. Writes only queue; the owner flushes them while it waits for the next
//! event. The module does not know deadlines.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    message::{ResponseHead, headers::Headers},
    proxy::{
        upstream::{
            http1_stream::Http1Stream, http2_stream::ClientStream, pool::PooledConnection,
            request_head::UpstreamRequestHead, worker::Worker,
        },
        wire::events::{UpstreamEvent, UpstreamInterest},
    },
    state::topology::endpoint::{ConnectionGuard, EndpointState},
    telemetry::reason::Reason,
    transport::queued_stream::ConnectionHandle,
};

/// One request at an endpoint: an HTTP/1 connection or an HTTP/2 stream.
pub(crate) struct Upstream {
    stream: UpstreamStream,
    endpoint: Arc<EndpointState>,
}

/// Why a request could not be queued towards a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The request target of the client cannot be expressed in HTTP/2.
    InvalidTarget,
    /// A head or a chunk that the proxy itself built is invalid.
    Internal,
}

enum UpstreamStream {
    Http1(UpstreamHttp1),
    Http2(Box<ClientStream>),
}

/// An HTTP/1 exchange on a connection of its own.
struct UpstreamHttp1 {
    /// Boxed, because it is large and is moved several times.
    stream: Box<Http1Stream>,
    handle: Arc<ConnectionHandle>,
    connection_guard: ConnectionGuard,
    certificate_generation: u64,
    /// Bytes that the socket had accepted before this request.
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
            stream: Box::new(Http1Stream::new(stream)),
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

    /// Queues the request head.
    ///
    /// # Errors
    /// If the head cannot be expressed in the protocol of the connection. Nothing is sent then.
    pub(crate) fn write_head(&mut self, head: UpstreamRequestHead<'_>) -> Result<(), WriteError> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let written = http1.stream.write_head(&head);
                written.map_err(|_| WriteError::Internal)
            }
            UpstreamStream::Http2(stream) => {
                // Only the client's request target can be valid in HTTP/1 and invalid in
                // HTTP/2.
                stream.write_head(head.into_http2().map_err(|_| WriteError::InvalidTarget)?);
                Ok(())
            }
        }
    }

    /// Queues a chunk of the request body.
    pub(crate) fn write(&mut self, piece: &Bytes) -> Result<(), WriteError> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let written = http1.stream.write(piece);
                written.map_err(|_| WriteError::Internal)
            }
            UpstreamStream::Http2(stream) => {
                stream.write(piece.clone());
                Ok(())
            }
        }
    }

    /// Queues the end of the request. An HTTP/1 request that is not chunked drops the trailers.
    pub(crate) fn finish(&mut self, trailers: Option<Headers>) -> Result<(), WriteError> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let finished = http1.stream.finish(trailers.as_ref());
                finished.map_err(|_| WriteError::Internal)
            }
            UpstreamStream::Http2(stream) => {
                stream.finish(trailers);
                Ok(())
            }
        }
    }

    /// Queues a chunk that was read from the client, and the end of the request if `is_done` is
    /// set.
    pub(crate) fn forward(
        &mut self,
        chunk: Option<&Bytes>,
        is_done: bool,
        trailers: Option<&Headers>,
    ) -> Result<(), WriteError> {
        if let Some(chunk) = chunk {
            self.write(chunk)?;
        }
        if is_done {
            self.finish(trailers.cloned())
        } else {
            Ok(())
        }
    }

    /// Queues bytes of a tunnel. Only HTTP/1 connections can become tunnels.
    pub(crate) fn write_tunnel_bytes(&mut self, bytes: &Bytes) -> Result<(), Reason> {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => {
                let written = http1.stream.write(bytes);
                written.map_err(|_| Reason::UpstreamReset)
            }
            UpstreamStream::Http2(_) => Err(Reason::UpstreamProtocolError),
        }
    }

    /// Returns whether the connection has accepted all queued output.
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.handle.is_flushed(),
            UpstreamStream::Http2(stream) => stream.is_flushed(),
        }
    }

    /// Waits for the next event of interest, and flushes queued output if `may_flush` is set.
    ///
    /// Cancel safe: a dropped call loses no data, and the next call continues.
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

    /// Returns the response head that was read last, which can be interim.
    pub(crate) fn head(&self) -> Option<&ResponseHead> {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.stream.head(),
            UpstreamStream::Http2(stream) => stream.head(),
        }
    }

    /// Returns whether the backend may have read any byte of this request.
    pub(crate) fn has_sent_request(&self) -> bool {
        match &self.stream {
            UpstreamStream::Http1(http1) => {
                http1.handle.bytes_sent() > http1.bytes_sent_at_start
                    && !http1.handle.peer_closed_before(http1.bytes_sent_at_start)
            }
            UpstreamStream::Http2(stream) => stream.has_sent_request(),
        }
    }

    /// Records that the response timed out. A shared connection that has received nothing since
    /// the stream was opened accepts no new streams.
    pub(crate) fn record_timeout(&self) {
        if let UpstreamStream::Http2(stream) = &self.stream {
            stream.record_timeout();
        }
    }

    /// Returns whether the backend has switched to another protocol than HTTP.
    pub(crate) fn was_upgraded(&self) -> bool {
        matches!(&self.stream, UpstreamStream::Http1(http1) if http1.stream.was_upgraded())
    }

    /// Makes an HTTP/1 stream write bytes without HTTP framing from now on.
    pub(crate) fn switch_to_tunnel(&mut self) {
        if let UpstreamStream::Http1(http1) = &mut self.stream {
            http1.stream.switch_to_tunnel();
        }
    }

    /// Returns whether the response has been read to its end.
    pub(crate) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            UpstreamStream::Http1(http1) => http1.stream.is_body_done(),
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

    /// Waits for the next chunk of the response body; `None` at its end.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        match self.next_event(UpstreamInterest::Body, false).await {
            UpstreamEvent::Body(read) => read,
            UpstreamEvent::Head(_) | UpstreamEvent::Flushed(_) => Err(Reason::InternalError),
        }
    }

    /// Returns the trailers of the response, once it has been read to its end.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        match &self.stream {
            UpstreamStream::Http1(http1) => http1.stream.trailers(),
            UpstreamStream::Http2(stream) => stream.trailers(),
        }
    }

    /// Returns the connection to the pool if request and response are complete.
    ///
    /// Otherwise the HTTP/1 connection closes, or the HTTP/2 stream is reset.
    pub(crate) fn release(self, worker: &Worker, is_request_complete: bool, now: Instant) {
        let http1 = match self.stream {
            UpstreamStream::Http1(http1) => http1,
            UpstreamStream::Http2(stream) => return stream.release(now),
        };
        if !is_request_complete || !http1.handle.is_flushed() || !http1.stream.is_body_done() {
            return;
        }
        if let Some(hint) = http1.stream.head().and_then(parse_keep_alive_timeout) {
            self.endpoint.record_idle_close(hint, now);
        }
        if let Some(stream) = http1.stream.into_reusable() {
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
        let Self { stream, handle, .. } = self;
        let read = async {
            match interest {
                UpstreamInterest::Head => UpstreamEvent::Head(stream.read_head().await),
                UpstreamInterest::Body => {
                    let read = stream.read_body().await;
                    UpstreamEvent::Body(read.map_err(|_| Reason::UpstreamReset))
                }
                UpstreamInterest::Nothing => std::future::pending().await,
            }
        };
        let should_flush = may_flush && !handle.is_flushed();
        let awaits_head = interest == UpstreamInterest::Head;
        tokio::select! {
            biased;
            // In a body or tunnel, the flush precedes the read: a backend that floods the proxy
            // must not block output in the other direction. Before the head, the read precedes
            // the flush: a response that was sent before the backend closed counts, even if the
            // backend accepts no more of the request.
            flushed = handle.flush(), if should_flush && !awaits_head => {
                UpstreamEvent::Flushed(flushed.is_ok())
            }
            event = read => event,
            flushed = handle.flush(), if should_flush && awaits_head => {
                UpstreamEvent::Flushed(flushed.is_ok())
            }
        }
    }
}

/// Returns the idle timeout that a backend states (`keep-alive: timeout=N`, in seconds).
fn parse_keep_alive_timeout(head: &ResponseHead) -> Option<Duration> {
    let parameters = head.headers.get_str("keep-alive")?;
    let seconds = parameters
        .split(',')
        .find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

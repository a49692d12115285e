//! The client's side of an exchange, whatever it speaks.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::{
    ErrorType,
    http::{RequestHeader, ResponseHeader},
    protocols::http::ServerSession,
};

use crate::{
    policy::snapshot::ListenerSpec,
    proxy::{
        downstream::http2::ServerStream,
        request::view::{ClientIdentity, RequestView},
        wire::events::{DownstreamEvent, DownstreamInterest},
    },
    telemetry::reason::Reason,
    transport::queued_stream::ConnectionHandle,
};

/// What happens to a client's connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionDisposition {
    /// It may carry another request.
    Reuse,
    /// It closes after a while, because the client still sends.
    Linger,
    /// It closes at once.
    Close,
}

/// A client with one request.
pub(crate) struct Client {
    pub(crate) stream: DownstreamStream,
    /// Who it is.
    pub(crate) identity: ClientIdentity,
    /// Where it came in.
    pub(crate) listener: Arc<ListenerSpec>,
}

/// One request and its answer, in one of two framings; boxed, because it is handed on from step to step.
pub(crate) enum DownstreamStream {
    Http1(DownstreamHttp1),
    Http2(Box<ServerStream>),
}

/// A session of HTTP/1, and the transport below.
pub(crate) struct DownstreamHttp1 {
    pub(crate) session: Box<ServerSession>,
    pub(crate) handle: Arc<ConnectionHandle>,
}

impl Client {
    /// The head of the request.
    pub(crate) fn head(&self) -> &RequestHeader {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.session.req_header(),
            DownstreamStream::Http2(stream) => stream.head(),
        }
    }

    /// The value of a header if it is text.
    pub(crate) fn header_str(&self, name: &http::HeaderName) -> Option<&str> {
        self.head()
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    }

    /// What it asks.
    pub(crate) fn request_view(&self) -> RequestView<'_> {
        RequestView {
            head: self.head(),
            identity: &self.identity,
            listener: &self.listener,
            is_http2: self.is_http2(),
            is_grpc: self.is_grpc(),
        }
    }

    /// Whether it speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.stream, DownstreamStream::Http2(_))
    }

    /// Whether its request is one of gRPC, so that its answers are too. There is no gRPC over HTTP/1.
    pub(crate) fn is_grpc(&self) -> bool {
        let DownstreamStream::Http2(stream) = &self.stream else {
            return false;
        };
        let content_type = stream
            .head()
            .headers
            .get(http::header::CONTENT_TYPE)
            .map(http::HeaderValue::as_bytes);
        content_type.is_some_and(|content_type| {
            content_type.starts_with(b"application/grpc")
                && matches!(content_type.get(16), None | Some(b'+' | b';'))
        })
    }

    /// Whether it has sent all of its request.
    pub(crate) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.session.is_body_done(),
            DownstreamStream::Http2(stream) => stream.is_body_done(),
        }
    }

    /// Waits for what happens next: it takes what is queued for it, it sends more of its request, or it leaves. Can be dropped and
    /// begun again at any time.
    pub(crate) async fn next_event(&mut self, interest: DownstreamInterest) -> DownstreamEvent {
        match &mut self.stream {
            DownstreamStream::Http1(DownstreamHttp1 { session, handle }) => {
                tokio::select! {
                    biased;
                    flushed = handle.flush(), if !handle.is_flushed() => DownstreamEvent::Flushed(flushed.map_err(|_| Reason::ClientClosed)),
                    read = session.read_body_or_idle(interest == DownstreamInterest::Close), if interest != DownstreamInterest::Nothing => DownstreamEvent::Read(read.map_err(|error| reason_from_error(&error))),
                    else => std::future::pending().await,
                }
            }
            DownstreamStream::Http2(stream) => stream.next_event(interest).await,
        }
    }

    /// Waits until it leaves. Something that it sends meanwhile is no reason to stop.
    pub(crate) async fn closed(&mut self) -> Reason {
        match self.next_event(DownstreamInterest::Close).await {
            DownstreamEvent::Flushed(Err(reason)) | DownstreamEvent::Read(Err(reason)) => reason,
            DownstreamEvent::Flushed(Ok(())) | DownstreamEvent::Read(Ok(_)) => Reason::ClientClosed,
        }
    }

    /// The trailers of its request, if it had some that are passed on.
    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        match &mut self.stream {
            DownstreamStream::Http1(_) => None,
            DownstreamStream::Http2(stream) => stream.take_trailers(),
        }
    }

    /// Queues the head of an interim answer.
    pub(crate) async fn write_interim(&mut self, head: Box<ResponseHeader>) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1
                .session
                .write_response_header(head)
                .await
                .map_err(|error| reason_from_error(&error)),
            DownstreamStream::Http2(stream) => stream
                .write_interim(*head)
                .map_err(|_| Reason::ClientClosed),
        }
    }

    /// Queues the head of its answer.
    pub(crate) async fn write_head(&mut self, head: Box<ResponseHeader>) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1
                .session
                .write_response_header(head)
                .await
                .map_err(|error| reason_from_error(&error)),
            DownstreamStream::Http2(stream) => {
                stream.write_head(*head);
                Ok(())
            }
        }
    }

    /// Queues a piece of its answer.
    pub(crate) async fn write(&mut self, piece: Bytes) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1
                .session
                .write_response_body(piece, false)
                .await
                .map_err(|_| Reason::ClientClosed),
            DownstreamStream::Http2(stream) => {
                stream.write(piece);
                Ok(())
            }
        }
    }

    /// Queues the end of its answer. Trailers do not pass HTTP/1.
    pub(crate) async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1
                .session
                .finish_body()
                .await
                .map(drop)
                .map_err(|_| Reason::ClientClosed),
            DownstreamStream::Http2(stream) => {
                stream.finish(trailers);
                Ok(())
            }
        }
    }

    /// Whether the client has taken everything that was queued.
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.handle.is_flushed(),
            DownstreamStream::Http2(stream) => stream.is_flushed(),
        }
    }

    /// Waits until the client has taken everything that was queued.
    pub(crate) async fn flush(&mut self) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => {
                http1.handle.flush().await.map_err(|_| Reason::ClientClosed)
            }
            DownstreamStream::Http2(stream) => {
                stream.flush().await.map_err(|_| Reason::ClientClosed)
            }
        }
    }

    /// Sees to it that the connection ends with this answer, if it carries one answer at a time.
    pub(crate) fn close_after_response(&mut self) {
        if let DownstreamStream::Http1(http1) = &mut self.stream {
            http1.session.set_keepalive(None);
        }
    }

    /// Says that nothing more will come, at the end of a tunnel.
    pub(crate) async fn shutdown(&mut self) {
        if let DownstreamStream::Http1(http1) = &mut self.stream {
            http1.session.shutdown().await;
        }
    }

    /// Bytes of the answer's body so far.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.session.body_bytes_sent() as u64,
            DownstreamStream::Http2(stream) => stream.body_bytes_sent(),
        }
    }
}

/// What it means that nothing more can be read from a client.
fn reason_from_error(error: &pingora::Error) -> Reason {
    match error.etype {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => {
            Reason::ClientClosed
        }
        _ => Reason::BadRequest,
    }
}

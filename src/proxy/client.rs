//! The client's side of an exchange, whatever it speaks.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::HeaderMap;
use pingora::{
    ErrorType,
    http::{RequestHeader, ResponseHeader},
    protocols::http::ServerSession,
};

use super::{asked::Asked, http2};
use crate::{policy::snapshot::ListenerSpec, telemetry::reason::Reason, transport::wire::Wire};

/// A client with one request.
pub(super) struct Client {
    pub(super) stream: ClientStream,
    /// Who it is.
    pub(super) peer: Peer,
    /// Where it came in.
    pub(super) listener: Arc<ListenerSpec>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Whether the connection is encrypted.
    pub(super) is_secure: bool,
    /// Who its certificate is for.
    pub(super) identity: Option<Arc<str>>,
}

/// One request and its answer, in one of two framings; boxed, because it is handed on from step to step.
pub(super) enum ClientStream {
    Http1(Http1),
    Http2(Box<http2::server::Exchange>),
}

/// What is waited for of a client, besides its taking what is queued for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listen {
    /// More of its request.
    Body,
    /// That it leaves; all of its request has come.
    Leaving,
    /// Nothing.
    Not,
}

impl Listen {
    /// For more, or if all of it has come, for its leaving.
    pub(super) fn after(is_done: bool) -> Self {
        if is_done { Self::Leaving } else { Self::Body }
    }
}

/// What a client did.
pub(super) enum ClientEvent {
    /// It took what was queued for it, or cannot.
    Pushed(Result<(), Reason>),
    /// It sent a piece of its request, its end, or something after it.
    Read(Result<Option<Bytes>, Reason>),
}

/// A session of HTTP/1, and the transport below.
pub(super) struct Http1 {
    pub(super) session: Box<ServerSession>,
    pub(super) wire: Arc<Wire>,
}

impl Client {
    /// The head of the request.
    pub(super) fn head(&self) -> &RequestHeader {
        match &self.stream {
            ClientStream::Http1(http1) => http1.session.req_header(),
            ClientStream::Http2(exchange) => exchange.head(),
        }
    }

    /// The value of a header if it is text.
    pub(super) fn text(&self, name: &http::HeaderName) -> Option<&str> {
        self.head()
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    }

    /// What it asks.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            head: self.head(),
            peer: &self.peer,
            trusted: &self.listener.trusted,
            is_http2: self.is_http2(),
            is_grpc: self.is_grpc(),
        }
    }

    /// Its address, as far as the proxies in between are trusted to tell it.
    pub(super) fn source(&self) -> IpAddr {
        self.asked().source()
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.stream, ClientStream::Http2(_))
    }

    /// Whether its request is one of gRPC, so that its answers are too. There is no gRPC over HTTP/1.
    pub(super) fn is_grpc(&self) -> bool {
        let ClientStream::Http2(exchange) = &self.stream else {
            return false;
        };
        let kind = exchange
            .head()
            .headers
            .get(http::header::CONTENT_TYPE)
            .map(http::HeaderValue::as_bytes);
        kind.is_some_and(|kind| {
            kind.starts_with(b"application/grpc")
                && matches!(kind.get(16), None | Some(b'+' | b';'))
        })
    }

    /// Whether it has sent all of its request.
    pub(super) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1.session.is_body_done(),
            ClientStream::Http2(exchange) => exchange.is_body_done(),
        }
    }

    /// Waits for what happens next: it takes what is queued for it, it sends more of its request, or it leaves. Can be dropped and
    /// begun again at any time.
    pub(super) async fn next(&mut self, listen: Listen) -> ClientEvent {
        match &mut self.stream {
            ClientStream::Http1(Http1 { session, wire }) => {
                tokio::select! {
                    biased;
                    pushed = wire.push(), if !wire.is_pushed() => ClientEvent::Pushed(pushed.map_err(|_| Reason::ClientClosed)),
                    read = session.read_body_or_idle(listen == Listen::Leaving), if listen != Listen::Not => ClientEvent::Read(read.map_err(|error| failure(&error))),
                    else => std::future::pending().await,
                }
            }
            ClientStream::Http2(exchange) => exchange.next(listen).await,
        }
    }

    /// Waits until it leaves. Something that it sends meanwhile is no reason to stop.
    pub(super) async fn gone(&mut self) -> Reason {
        match self.next(Listen::Leaving).await {
            ClientEvent::Pushed(Err(reason)) | ClientEvent::Read(Err(reason)) => reason,
            ClientEvent::Pushed(Ok(())) | ClientEvent::Read(Ok(_)) => Reason::ClientClosed,
        }
    }

    /// The trailers of its request, if it had some that are passed on.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        match &mut self.stream {
            ClientStream::Http1(_) => None,
            ClientStream::Http2(exchange) => exchange.take_trailers(),
        }
    }

    /// Queues the head of an interim answer.
    pub(super) async fn write_interim(&mut self, head: Box<ResponseHeader>) -> Result<(), Reason> {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1
                .session
                .write_response_header(head)
                .await
                .map_err(|error| failure(&error)),
            ClientStream::Http2(exchange) => exchange
                .write_interim(*head)
                .map_err(|_| Reason::ClientClosed),
        }
    }

    /// Queues the head of its answer.
    pub(super) async fn write_head(&mut self, head: Box<ResponseHeader>) -> Result<(), Reason> {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1
                .session
                .write_response_header(head)
                .await
                .map_err(|error| failure(&error)),
            ClientStream::Http2(exchange) => {
                exchange.write_head(*head);
                Ok(())
            }
        }
    }

    /// Queues a piece of its answer.
    pub(super) async fn write(&mut self, piece: Bytes) -> Result<(), Reason> {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1
                .session
                .write_response_body(piece, false)
                .await
                .map_err(|_| Reason::ClientClosed),
            ClientStream::Http2(exchange) => {
                exchange.write(piece);
                Ok(())
            }
        }
    }

    /// Queues the end of its answer. Trailers do not pass HTTP/1.
    pub(super) async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1
                .session
                .finish_body()
                .await
                .map(drop)
                .map_err(|_| Reason::ClientClosed),
            ClientStream::Http2(exchange) => {
                exchange.finish(trailers);
                Ok(())
            }
        }
    }

    /// Whether the client has taken everything that was queued.
    pub(super) fn is_pushed(&self) -> bool {
        match &self.stream {
            ClientStream::Http1(http1) => http1.wire.is_pushed(),
            ClientStream::Http2(exchange) => exchange.is_pushed(),
        }
    }

    /// Waits until the client has taken everything that was queued.
    pub(super) async fn push(&mut self) -> Result<(), Reason> {
        match &mut self.stream {
            ClientStream::Http1(http1) => http1.wire.push().await.map_err(|_| Reason::ClientClosed),
            ClientStream::Http2(exchange) => {
                exchange.push().await.map_err(|_| Reason::ClientClosed)
            }
        }
    }

    /// Sees to it that the connection ends with this answer, if it carries one answer at a time.
    pub(super) fn close_after(&mut self) {
        if let ClientStream::Http1(http1) = &mut self.stream {
            http1.session.set_keepalive(None);
        }
    }

    /// Says that nothing more will come, at the end of a tunnel.
    pub(super) async fn shutdown(&mut self) {
        if let ClientStream::Http1(http1) = &mut self.stream {
            http1.session.shutdown().await;
        }
    }

    /// Bytes of the answer's body so far.
    pub(super) fn sent(&self) -> u64 {
        match &self.stream {
            ClientStream::Http1(http1) => http1.session.body_bytes_sent() as u64,
            ClientStream::Http2(exchange) => exchange.sent(),
        }
    }
}

/// What it means that nothing more can be read from a client.
fn failure(error: &pingora::Error) -> Reason {
    match error.etype {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => {
            Reason::ClientClosed
        }
        _ => Reason::BadRequest,
    }
}

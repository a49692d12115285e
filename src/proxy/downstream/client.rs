//! One request of a client, and the stream that carries it and its response, in HTTP/1 or
//! HTTP/2.
//!
//! Writes only append to a queue; the owner of the request flushes it while it waits for other
//! events. The module does not know what the response contains.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    message::{RequestHead, ResponseHead, headers::Headers},
    policy::snapshot::ListenerSpec,
    proxy::{
        downstream::{http1_stream::DownstreamHttp1, http2::ServerStream},
        request::view::{ClientIdentity, RequestView},
        wire::events::{DownstreamEvent, DownstreamInterest},
    },
    telemetry::reason::Reason,
};

/// What happens to a client's connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionDisposition {
    /// The connection may carry another request.
    Reuse,
    /// The proxy stops writing, then discards input for a limited time before it closes. The
    /// client may still be sending.
    Linger,
    /// The connection closes at once.
    Close,
}

/// Client with one request.
pub(crate) struct Client {
    pub(crate) stream: DownstreamStream,
    /// Address and certificate identity of the client.
    pub(crate) identity: ClientIdentity,
    /// Listener on which the request arrived, as specified at that time.
    pub(crate) listener: Arc<ListenerSpec>,
}

/// Stream of one request and its response. Both are boxed, because the value moves from stage to
/// stage.
pub(crate) enum DownstreamStream {
    Http1(Box<DownstreamHttp1>),
    Http2(Box<ServerStream>),
}

impl Client {
    /// Returns the head of the request.
    pub(crate) fn head(&self) -> &RequestHead {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.head(),
            DownstreamStream::Http2(stream) => stream.head(),
        }
    }

    /// Returns the value of a request header if it is text.
    pub(crate) fn header_str(&self, name: impl AsRef<str>) -> Option<&str> {
        self.head().headers.get_str(name)
    }

    /// Returns the head of the request and its sender.
    pub(crate) fn request_view(&self) -> RequestView<'_> {
        RequestView {
            head: self.head(),
            identity: &self.identity,
            listener: &self.listener,
            is_http2: self.is_http2(),
            is_grpc: self.is_grpc(),
        }
    }

    /// Returns whether the client speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.stream, DownstreamStream::Http2(_))
    }

    /// Returns whether the request is a gRPC call, which needs a gRPC status in its response.
    /// An HTTP/1 request never is.
    pub(crate) fn is_grpc(&self) -> bool {
        matches!(&self.stream, DownstreamStream::Http2(stream) if stream.is_grpc())
    }

    /// Returns whether the client has sent its whole request.
    pub(crate) fn is_body_done(&mut self) -> bool {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.is_body_done(),
            DownstreamStream::Http2(stream) => stream.is_body_done(),
        }
    }

    /// Waits for the next event: a flush of queued output, a chunk of the request, or a
    /// failure.
    ///
    /// Cancel safe: a dropped call loses no bytes, and the next call continues.
    pub(crate) async fn next_event(&mut self, interest: DownstreamInterest) -> DownstreamEvent {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => {
                let handle = http1.handle().clone();
                tokio::select! {
                    biased;
                    flushed = handle.flush(), if !handle.is_flushed() => {
                        DownstreamEvent::Flushed(flushed.map_err(|_| Reason::ClientClosed))
                    }
                    read = http1.read(interest), if interest != DownstreamInterest::Nothing => {
                        DownstreamEvent::Read(read)
                    }
                    else => std::future::pending().await,
                }
            }
            DownstreamStream::Http2(stream) => stream.next_event(interest).await,
        }
    }

    /// Waits until the client closes the stream, and returns the reason.
    ///
    /// The caller must have flushed all output, because a completed flush also ends the wait.
    /// Pipelined requests do not end it; they are retained for the next request.
    pub(crate) async fn closed(&mut self) -> Reason {
        match self.next_event(DownstreamInterest::Close).await {
            DownstreamEvent::Flushed(Err(reason)) | DownstreamEvent::Read(Err(reason)) => reason,
            DownstreamEvent::Flushed(Ok(())) | DownstreamEvent::Read(Ok(_)) => Reason::ClientClosed,
        }
    }

    /// Takes the trailers of the request out, once it has been read to its end; `None` if it has
    /// none.
    pub(crate) fn take_trailers(&mut self) -> Option<Headers> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.trailers().cloned(),
            DownstreamStream::Http2(stream) => stream.take_trailers(),
        }
    }

    /// Queues an interim response, with a status of 1xx.
    ///
    /// # Errors
    /// If the client has closed the stream.
    pub(crate) fn write_interim(&mut self, head: &ResponseHead) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.write_interim(head),
            DownstreamStream::Http2(stream) => {
                let written = stream.write_interim(head);
                written.map_err(|_| Reason::ClientClosed)
            }
        }
    }

    /// Queues the head of the final response.
    ///
    /// # Errors
    /// If the client has closed the stream.
    pub(crate) fn write_head(&mut self, head: &ResponseHead) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.write_head(head),
            DownstreamStream::Http2(stream) => {
                stream.write_head(head);
                Ok(())
            }
        }
    }

    /// Queues a chunk of the response body.
    ///
    /// # Errors
    /// If the client has closed the stream.
    pub(crate) fn write(&mut self, piece: Bytes) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.write(&piece),
            DownstreamStream::Http2(stream) => {
                stream.write(piece);
                Ok(())
            }
        }
    }

    /// Queues the end of the response. HTTP/1 drops the trailers unless the client accepts them.
    ///
    /// # Errors
    /// If the client has closed the stream, or the body is shorter than the head declares.
    pub(crate) fn finish(&mut self, trailers: Option<Headers>) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => http1.finish(trailers.as_ref()),
            DownstreamStream::Http2(stream) => {
                stream.finish(trailers);
                Ok(())
            }
        }
    }

    /// Returns whether all queued output was passed on: HTTP/1 output to the socket, HTTP/2
    /// output to h2 within the stream's window.
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.handle().is_flushed(),
            DownstreamStream::Http2(stream) => stream.is_flushed(),
        }
    }

    /// Waits until all queued output was passed on, as [`Self::is_flushed`] defines it.
    ///
    /// # Errors
    /// If the client has closed the stream.
    pub(crate) async fn flush(&mut self) -> Result<(), Reason> {
        match &mut self.stream {
            DownstreamStream::Http1(http1) => {
                let flushed = http1.handle().flush().await;
                flushed.map_err(|_| Reason::ClientClosed)
            }
            DownstreamStream::Http2(stream) => {
                stream.flush().await.map_err(|_| Reason::ClientClosed)
            }
        }
    }

    /// Closes the connection after this response. An HTTP/2 connection continues, because it
    /// carries other streams.
    pub(crate) fn close_after_response(&mut self) {
        if let DownstreamStream::Http1(http1) = &mut self.stream {
            http1.close_after_response();
        }
    }

    /// Closes the sending side of an HTTP/1 connection, at the end of a tunnel.
    pub(crate) async fn shutdown(&mut self) {
        if let DownstreamStream::Http1(http1) = &mut self.stream {
            http1.shutdown().await;
        }
    }

    /// Returns the number of bytes of the response body that were written to this stream.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        match &self.stream {
            DownstreamStream::Http1(http1) => http1.body_bytes_sent(),
            DownstreamStream::Http2(stream) => stream.body_bytes_sent(),
        }
    }
}

//! One HTTP/2 stream of a client: a request and its response.
//!
//! Writes only append to a queue. [`ServerStream::next_event`] and [`ServerStream::flush`] pass
//! to h2 what the stream's window accepts. The owner of the request can therefore read and
//! write in one task. The module does not know connections; `accept::http2` does.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, header};
use pingora::protocols::http::date::get_cached_date;

use crate::{
    message::{RequestHead, ResponseHead, headers::Headers},
    proxy::wire::{
        events::{DownstreamEvent, DownstreamInterest},
        received_body::ReceivedBody,
        send_queue::{SendQueue, StreamClosed},
        stall_counter::StallCounter,
    },
    telemetry::reason,
};

/// Request and response of one HTTP/2 stream.
#[derive(Debug)]
pub(crate) struct ServerStream {
    request_head: RequestHead,
    is_grpc: bool,
    request_body: ReceivedBody,
    response_sender: SendResponse<Bytes>,
    /// Head of the final response, until it is passed to h2.
    queued_response: Option<Response<()>>,
    /// Sending half of the stream; `None` until the response head is passed to h2.
    send_stream: Option<SendStream<Bytes>>,
    send_queue: SendQueue,
    body_bytes_sent: u64,
    is_reset_prematurely: bool,
    stall_counter: StallCounter,
}

impl ServerStream {
    pub(crate) fn new(
        request: Request<RecvStream>,
        response_sender: SendResponse<Bytes>,
        stall_counter: StallCounter,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let request_head = RequestHead::from(parts);
        Self {
            is_grpc: is_grpc_content_type(&request_head.headers),
            request_head,
            request_body: ReceivedBody::new(body),
            response_sender,
            queued_response: None,
            send_stream: None,
            send_queue: SendQueue::default(),
            body_bytes_sent: 0,
            is_reset_prematurely: false,
            stall_counter,
        }
    }

    /// Returns the head of the request.
    pub(crate) fn head(&self) -> &RequestHead {
        &self.request_head
    }

    /// Returns whether the request is a gRPC call, by its content type.
    pub(crate) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// Returns whether the client has sent its whole request.
    pub(crate) fn is_body_done(&self) -> bool {
        self.request_body.is_done()
    }

    /// Takes the trailers of the request out; `None` if it has none.
    pub(crate) fn take_trailers(&mut self) -> Option<Headers> {
        self.request_body.take_trailers()
    }

    /// Returns whether [`Self::next_event`] has seen the stream fail before its response ended.
    pub(crate) fn was_reset_prematurely(&self) -> bool {
        self.is_reset_prematurely
    }

    /// Returns the number of bytes of the response body that were queued so far.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        self.body_bytes_sent
    }

    /// Waits for the next event: a flush of queued output, a chunk of the request, or a
    /// failure.
    ///
    /// Cancel safe: a dropped call loses no bytes, and the next call continues.
    pub(crate) async fn next_event(&mut self, interest: DownstreamInterest) -> DownstreamEvent {
        let event = poll_fn(|context| {
            if !self.is_flushed()
                && let Poll::Ready(flushed) = self.poll_flush(context)
            {
                let flushed = flushed.map_err(|_| reason::Reason::ClientClosed);
                return Poll::Ready(DownstreamEvent::Flushed(flushed));
            }
            let polled = match interest {
                DownstreamInterest::Nothing => Poll::Pending,
                DownstreamInterest::Body => {
                    let read = self.request_body.poll_read(context);
                    read.map(|read| {
                        DownstreamEvent::Read(read.map_err(|_| reason::Reason::ClientClosed))
                    })
                }
                DownstreamInterest::Close => self
                    .poll_reset(context)
                    .map(|()| DownstreamEvent::Read(Err(reason::Reason::ClientClosed))),
            };
            let awaits_body = interest == DownstreamInterest::Body;
            let is_stalled = polled.is_pending() && (awaits_body || !self.is_flushed());
            self.stall_counter.set_stalled(is_stalled);
            polled
        })
        .await;
        self.is_reset_prematurely |= matches!(
            &event,
            DownstreamEvent::Flushed(Err(_)) | DownstreamEvent::Read(Err(_))
        );
        event
    }

    /// Sends an interim response, with a status of 1xx.
    ///
    /// # Errors
    /// If the stream is closed.
    pub(crate) fn write_interim(&mut self, head: &ResponseHead) -> Result<(), StreamClosed> {
        self.response_sender
            .send_informational(response_from_head(head))
            .map_err(|_| StreamClosed)
    }

    /// Queues the head of the final response, with `date` if it has none.
    pub(crate) fn write_head(&mut self, head: &ResponseHead) {
        let mut response = response_from_head(head);
        let date = response.headers_mut().entry(header::DATE);
        date.or_insert_with(get_cached_date);
        self.queued_response = Some(response);
    }

    /// Queues a chunk of the response body. A response to HEAD has no body, so the chunk is
    /// dropped.
    pub(crate) fn write(&mut self, piece: Bytes) {
        if self.request_head.method == Method::HEAD {
            return;
        }
        self.body_bytes_sent += piece.len() as u64;
        self.send_queue.write(piece);
    }

    /// Queues the end of the response, with its trailers if there are any.
    pub(crate) fn finish(&mut self, trailers: Option<Headers>) {
        self.send_queue.finish(trailers);
    }

    /// Returns whether all queued output was passed to h2.
    pub(crate) fn is_flushed(&self) -> bool {
        self.queued_response.is_none() && self.send_queue.is_empty()
    }

    /// Waits until all queued output was passed to h2. It waits for the window of the stream.
    ///
    /// # Errors
    /// If the stream is closed.
    pub(crate) async fn flush(&mut self) -> Result<(), StreamClosed> {
        poll_fn(|context| {
            let flushed = self.poll_flush(context);
            self.stall_counter.set_stalled(flushed.is_pending());
            flushed
        })
        .await
    }

    /// Resets the stream, so that the client does not take the response for complete.
    pub(crate) fn reset(&mut self) {
        match &mut self.send_stream {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.response_sender.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send_stream {
            Some(stream) => stream.poll_reset(context),
            None => self.response_sender.poll_reset(context),
        };
        reset.map(drop)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamClosed>> {
        if let Some(response) = self.queued_response.take() {
            let is_end = self.send_queue.is_end_of_stream_only();
            self.send_stream = Some(
                self.response_sender
                    .send_response(response, is_end)
                    .map_err(|_| StreamClosed)?,
            );
            if is_end {
                self.send_queue.mark_end_sent();
            }
        }
        match &mut self.send_stream {
            Some(stream) => self.send_queue.poll_flush(stream, context),
            None => Poll::Ready(Ok(())),
        }
    }
}

fn response_from_head(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = HeaderMap::from(&head.headers);
    response
}

/// Returns whether the content type is that of gRPC: `application/grpc`, alone or with a suffix.
fn is_grpc_content_type(headers: &Headers) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|content_type| {
        content_type.starts_with(b"application/grpc")
            && matches!(content_type.get(16), None | Some(b'+' | b';'))
    })
}

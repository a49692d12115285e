//! One request to a backend and its response, as a stream of a shared HTTP/2 connection.
//!
//! Writes only append to a queue. [`ClientStream::next_event`] passes to the h2 crate what the
//! stream's window accepts. The module does not choose the connection and does not retry.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::Request;

use crate::{
    message::{ResponseHead, headers::Headers},
    proxy::{
        upstream::http2::StreamPermit,
        wire::{
            events::{StreamError, UpstreamEvent, UpstreamInterest},
            received_body::ReceivedBody,
            send_queue::{SendQueue, StreamClosed},
        },
    },
    telemetry::reason,
};

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
    response_head: Option<ResponseHead>,
    response_body: Option<ReceivedBody>,
    /// Why the h2 crate did not accept the request head, if it did not.
    send_error: Option<StreamError>,
}

impl ClientStream {
    /// Creates a stream that sends nothing until its request head is flushed.
    pub(crate) fn new(permit: StreamPermit) -> Self {
        Self {
            bytes_received_at_start: permit.bytes_received(),
            permit,
            queued_head: None,
            response_future: None,
            stream: None,
            send_queue: SendQueue::default(),
            response_head: None,
            response_body: None,
            send_error: None,
        }
    }

    /// Queues the request head for the next flush.
    pub(crate) fn write_head(&mut self, head: Request<()>) {
        self.queued_head = Some(head);
    }

    /// Queues a chunk of the request body for the next flush.
    pub(crate) fn write(&mut self, piece: Bytes) {
        self.send_queue.write(piece);
    }

    /// Queues the end of the request, with its trailers if there are any.
    pub(crate) fn finish(&mut self, trailers: Option<Headers>) {
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
    pub(crate) fn head(&self) -> Option<&ResponseHead> {
        self.response_head.as_ref()
    }

    /// Returns whether the response has been read to its end.
    pub(crate) fn is_body_done(&self) -> bool {
        self.response_body
            .as_ref()
            .is_some_and(ReceivedBody::is_done)
    }

    /// Returns the trailers of the response, once its end has been read.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        self.response_body.as_ref()?.trailers()
    }

    /// Records that the response timed out.
    ///
    /// If the connection has received no byte since the stream opened, it may be dead, so it
    /// accepts no new streams. If a network silently drops packets, TCP reports an error only
    /// after about 15 minutes.
    pub(crate) fn record_timeout(&self) {
        if self.permit.bytes_received() == self.bytes_received_at_start {
            self.permit.mark_closing();
        }
    }

    /// Releases the stream and records the time as the connection's last use.
    pub(crate) fn release(self, now: Instant) {
        self.permit.release(now);
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamClosed>> {
        if self.queued_head.is_some() {
            let ready = ready!(self.permit.poll_ready(context));
            let is_end = self.send_queue.is_end_of_stream_only();
            let sent = match (ready, self.queued_head.take()) {
                (Ok(()), Some(head)) => self.permit.send_head(head, is_end),
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
                    self.permit.mark_closing();
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
            let interim = interim.map_err(|error| self.permit.record_error(&error))?;
            self.response_head = Some(interim.into_parts().0.into());
            return Poll::Ready(Ok(()));
        }
        let response = ready!(Pin::new(response).poll(context))
            .map_err(|error| self.permit.record_error(&error))?;
        let (parts, body) = response.into_parts();
        self.response_head = Some(parts.into());
        self.response_body = Some(ReceivedBody::new(body));
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match &mut self.response_body {
            Some(body) => body
                .poll_read(context)
                .map_err(|error| self.permit.record_error(&error)),
            None => Poll::Ready(Ok(None)),
        }
    }
}

//! A stream of a client: one request and its answer.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Method, Request, Response};
use pingora::http::{RequestHeader, ResponseHeader};

use super::{
    super::client::{ClientEvent, Listen},
    outgoing::{Gone, Outgoing},
};
use crate::telemetry::reason;

/// One request and its answer.
#[derive(Debug)]
pub(in crate::proxy) struct Exchange {
    head: RequestHeader,
    body: RecvStream,
    is_body_done: bool,
    trailers: Option<HeaderMap>,
    respond: SendResponse<Bytes>,
    /// The head of the answer, until it is sent.
    answer: Option<Response<()>>,
    stream: Option<SendStream<Bytes>>,
    outgoing: Outgoing,
    sent: u64,
    is_given_up: bool,
}

impl Exchange {
    pub(in crate::proxy) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let is_body_done = body.is_end_stream();
        Self {
            head: parts.into(),
            body,
            is_body_done,
            trailers: None,
            respond,
            answer: None,
            stream: None,
            outgoing: Outgoing::default(),
            sent: 0,
            is_given_up: false,
        }
    }

    /// The head of the request.
    pub(in crate::proxy) fn head(&self) -> &RequestHeader {
        &self.head
    }

    /// Whether the client has sent all of its request.
    pub(in crate::proxy) fn is_body_done(&self) -> bool {
        self.is_body_done
    }

    /// The trailers of the request, if it had some.
    pub(in crate::proxy) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Whether the client gave up before it had its answer.
    pub(in crate::proxy) fn was_given_up(&self) -> bool {
        self.is_given_up
    }

    /// Bytes of the answer's body so far.
    pub(in crate::proxy) fn sent(&self) -> u64 {
        self.sent
    }

    /// Waits for what happens next.
    pub(in crate::proxy) async fn next(&mut self, listen: Listen) -> ClientEvent {
        let event = poll_fn(|context| {
            let gone = |_| reason::Reason::ClientClosed;
            if !self.is_pushed()
                && let Poll::Ready(pushed) = self.poll_push(context)
            {
                return Poll::Ready(ClientEvent::Pushed(pushed.map_err(gone)));
            }
            match listen {
                Listen::Not => Poll::Pending,
                Listen::Body => self
                    .poll_read(context)
                    .map(|read| ClientEvent::Read(read.map_err(gone))),
                Listen::Leaving => self
                    .poll_reset(context)
                    .map(|()| ClientEvent::Read(Err(reason::Reason::ClientClosed))),
            }
        })
        .await;
        self.is_given_up |= matches!(
            &event,
            ClientEvent::Pushed(Err(_)) | ClientEvent::Read(Err(_))
        );
        event
    }

    /// Sends an interim answer.
    pub(in crate::proxy) fn write_interim(&mut self, head: ResponseHeader) -> Result<(), Gone> {
        self.respond
            .send_informational(response(head))
            .map_err(|_| Gone)
    }

    /// Queues the head of the answer.
    pub(in crate::proxy) fn write_head(&mut self, head: ResponseHeader) {
        self.answer = Some(response(head));
    }

    /// Queues a piece of the answer's body; an answer to HEAD has none.
    pub(in crate::proxy) fn write(&mut self, piece: Bytes) {
        if self.head.method == Method::HEAD {
            return;
        }
        self.sent += piece.len() as u64;
        self.outgoing.write(piece);
    }

    /// Queues the end of the answer.
    pub(in crate::proxy) fn finish(&mut self, trailers: Option<HeaderMap>) {
        self.outgoing.finish(trailers);
    }

    /// Whether everything was handed over.
    pub(in crate::proxy) fn is_pushed(&self) -> bool {
        self.answer.is_none() && self.outgoing.is_empty()
    }

    /// Waits until everything was handed over.
    pub(in crate::proxy) async fn push(&mut self) -> Result<(), Gone> {
        poll_fn(|context| self.poll_push(context)).await
    }

    /// Breaks the answer off, so that nobody takes it for complete.
    pub(in crate::proxy) fn break_off(&mut self) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.stream {
            Some(stream) => stream.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        reset.map(drop)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Gone>> {
        if self.is_body_done {
            return Poll::Ready(Ok(None));
        }
        match ready!(self.body.poll_data(context)) {
            Some(Ok(piece)) => {
                // It is held by us now, one piece at a time, so that the sender may go on.
                _ = self.body.flow_control().release_capacity(piece.len());
                self.is_body_done = self.body.is_end_stream();
                Poll::Ready(Ok(Some(piece)))
            }
            Some(Err(_)) => Poll::Ready(Err(Gone)),
            None => {
                self.trailers = ready!(self.body.poll_trailers(context)).map_err(|_| Gone)?;
                self.is_body_done = true;
                Poll::Ready(Ok(None))
            }
        }
    }

    fn poll_push(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if let Some(answer) = self.answer.take() {
            let is_end = self.outgoing.is_only_the_end();
            self.stream = Some(
                self.respond
                    .send_response(answer, is_end)
                    .map_err(|_| Gone)?,
            );
            if is_end {
                self.outgoing.ended();
            }
        }
        match &mut self.stream {
            Some(stream) => self.outgoing.poll_push(stream, context),
            None => Poll::Ready(Ok(())),
        }
    }
}

fn response(head: ResponseHeader) -> Response<()> {
    let parts: http::response::Parts = head.into();
    let mut response = Response::new(());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

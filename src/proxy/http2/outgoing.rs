//! What goes out on a stream: pieces of a body, queued until the other side's window takes them, and the end.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

/// What is still to be sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Bytes>,
    end: End,
}

/// How a stream ends.
#[derive(Debug, Default)]
enum End {
    /// Not yet.
    #[default]
    Open,
    /// With the last piece, and these trailers if there are any.
    Wanted(Option<HeaderMap>),
    /// It has.
    Sent,
}

/// The stream is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Gone;

impl Outgoing {
    /// Queues a piece.
    pub(super) fn write(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.queue.push_back(piece);
        }
    }

    /// Ends with what is queued, and trailers.
    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>) {
        if matches!(self.end, End::Open) {
            self.end = End::Wanted(trailers);
        }
    }

    /// Whether there is nothing to send but the end, which a head can carry.
    pub(super) fn is_only_the_end(&self) -> bool {
        self.queue.is_empty() && matches!(self.end, End::Wanted(None))
    }

    /// Whether everything was handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && !matches!(self.end, End::Wanted(_))
    }

    /// Takes note that the head carried the end.
    pub(super) fn ended(&mut self) {
        self.end = End::Sent;
    }

    /// Hands over what the window takes, until nothing is left.
    pub(super) fn poll_push(
        &mut self,
        stream: &mut SendStream<Bytes>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Gone>> {
        while let Some(piece) = self.queue.front_mut() {
            stream.reserve_capacity(piece.len());
            while stream.capacity() == 0 {
                match ready!(stream.poll_capacity(context)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
                }
            }
            let part = piece.split_to(piece.len().min(stream.capacity()));
            if piece.is_empty() {
                self.queue.pop_front();
            }
            let is_last = self.is_only_the_end();
            stream.send_data(part, is_last).map_err(|_| Gone)?;
            if is_last {
                self.end = End::Sent;
            }
        }
        if let End::Wanted(trailers) = &mut self.end {
            let sent = match trailers.take() {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            };
            self.end = End::Sent;
            sent.map_err(|_| Gone)?;
        }
        Poll::Ready(Ok(()))
    }
}

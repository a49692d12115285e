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
pub(crate) struct SendQueue {
    chunks: VecDeque<Bytes>,
    end: StreamEnd,
}

/// How a stream ends.
#[derive(Debug, Default)]
enum StreamEnd {
    /// Not yet.
    #[default]
    Open,
    /// With the last piece, and these trailers if there are any.
    Queued(Option<HeaderMap>),
    /// It has.
    Sent,
}

/// The stream is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamClosed;

impl SendQueue {
    /// Queues a piece.
    pub(crate) fn write(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.chunks.push_back(piece);
        }
    }

    /// Ends with what is queued, and trailers.
    pub(crate) fn finish(&mut self, trailers: Option<HeaderMap>) {
        if matches!(self.end, StreamEnd::Open) {
            self.end = StreamEnd::Queued(trailers);
        }
    }

    /// Whether there is nothing to send but the end, which a head can carry.
    pub(crate) fn is_end_of_stream_only(&self) -> bool {
        self.chunks.is_empty() && matches!(self.end, StreamEnd::Queued(None))
    }

    /// Whether everything was handed over.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && !matches!(self.end, StreamEnd::Queued(_))
    }

    /// Takes note that the head carried the end.
    pub(crate) fn mark_end_sent(&mut self) {
        self.end = StreamEnd::Sent;
    }

    /// Hands over what the window takes, until nothing is left.
    pub(crate) fn poll_flush(
        &mut self,
        stream: &mut SendStream<Bytes>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), StreamClosed>> {
        while let Some(piece) = self.chunks.front_mut() {
            stream.reserve_capacity(piece.len());
            while stream.capacity() == 0 {
                match ready!(stream.poll_capacity(context)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(StreamClosed)),
                }
            }
            let sendable = piece.split_to(piece.len().min(stream.capacity()));
            if piece.is_empty() {
                self.chunks.pop_front();
            }
            let is_last = self.is_end_of_stream_only();
            stream
                .send_data(sendable, is_last)
                .map_err(|_| StreamClosed)?;
            if is_last {
                self.end = StreamEnd::Sent;
            }
        }
        if let StreamEnd::Queued(trailers) = &mut self.end {
            let sent = match trailers.take() {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            };
            self.end = StreamEnd::Sent;
            sent.map_err(|_| StreamClosed)?;
        }
        Poll::Ready(Ok(()))
    }
}

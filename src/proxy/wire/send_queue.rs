//! Queue of the body of one HTTP/2 message, until the window of the stream accepts it.
//!
//! A write never waits, so the owner of a request can read meanwhile. The module does not bound
//! the queue; users flush one chunk before they write the next. It does not know message heads.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::SendStream;

use crate::message::headers::Headers;

/// Chunks that are not yet passed to h2, and the end of the stream.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    chunks: VecDeque<Bytes>,
    end: StreamEnd,
}

/// State of the end of a stream.
#[derive(Debug, Default)]
enum StreamEnd {
    /// The end is not queued yet, and more chunks may follow.
    #[default]
    Open,
    /// The end follows the queued chunks, with these trailers if there are any.
    Queued(Option<Headers>),
    /// The end was passed to h2.
    Sent,
}

/// Error of a stream that the peer has reset, or whose connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamClosed;

impl SendQueue {
    /// Queues a chunk of the body. An empty chunk is ignored.
    pub(crate) fn write(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.chunks.push_back(piece);
        }
    }

    /// Queues the end of the stream, with its trailers. A second call has no effect.
    pub(crate) fn finish(&mut self, trailers: Option<Headers>) {
        if matches!(self.end, StreamEnd::Open) {
            self.end = StreamEnd::Queued(trailers);
        }
    }

    /// Returns whether only the end is queued, without trailers. The message head or the last
    /// chunk can then carry it.
    pub(crate) fn is_end_of_stream_only(&self) -> bool {
        self.chunks.is_empty() && matches!(self.end, StreamEnd::Queued(None))
    }

    /// Returns whether everything that was queued was passed to h2.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && !matches!(self.end, StreamEnd::Queued(_))
    }

    /// Records that the message head carried the end of the stream.
    pub(crate) fn mark_end_sent(&mut self) {
        self.end = StreamEnd::Sent;
    }

    /// Passes chunks to h2 as the window accepts them, and completes once the queue is empty.
    ///
    /// # Errors
    /// If the stream is closed.
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
                Some(trailers) => stream.send_trailers(http::HeaderMap::from(&trailers)),
                None => stream.send_data(Bytes::new(), true),
            };
            self.end = StreamEnd::Sent;
            sent.map_err(|_| StreamClosed)?;
        }
        Poll::Ready(Ok(()))
    }
}

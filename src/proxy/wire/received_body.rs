//! Body and trailers of one HTTP/2 message, as the peer sends them.
//!
//! The windows of the stream and of its connection open again as soon as a chunk is read,
//! because the owner of a request reads one chunk at a time. The module does not know message
//! heads, and does not classify errors.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;

use crate::{message::headers::Headers, proxy::wire::trailer_fields};

/// Receiving half of a stream, after its message head.
#[derive(Debug)]
pub(crate) struct ReceivedBody {
    stream: RecvStream,
    is_done: bool,
    trailers: Option<Headers>,
}

impl ReceivedBody {
    /// Creates the body of a message whose head has arrived.
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            is_done: stream.is_end_stream(),
            stream,
            trailers: None,
        }
    }

    /// Returns whether the message has been read to its end.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Returns the trailers, once the end has been read; `None` if there are none.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_ref()
    }

    /// Takes the trailers out; `None` if there are none.
    pub(crate) fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }

    /// Reads the next chunk; `None` is the end of the message.
    ///
    /// # Errors
    /// If the stream was reset or its connection is broken.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, h2::Error>> {
        if self.is_done {
            return Poll::Ready(Ok(None));
        }
        match ready!(self.stream.poll_data(context)) {
            Some(Ok(piece)) => {
                // This fails only if more bytes are released than were received.
                _ = self.stream.flow_control().release_capacity(piece.len());
                self.is_done = self.stream.is_end_stream();
                Poll::Ready(Ok(Some(piece)))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                let trailers = ready!(self.stream.poll_trailers(context))?;
                self.trailers = trailers.and_then(|trailers| {
                    trailer_fields::without_forbidden(&Headers::from(&trailers))
                });
                self.is_done = true;
                Poll::Ready(Ok(None))
            }
        }
    }
}

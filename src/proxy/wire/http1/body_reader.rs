//! Reads the body of a message from the bytes of its connection.

use bytes::BytesMut;
use http::{Method, Version};

pub(crate) use crate::proxy::wire::http1::chunk_decoder::BodyProgress;
use crate::{
    message::{
        RequestHead, ResponseHead,
        framing::{self, BodyFraming},
        headers::Headers,
    },
    proxy::wire::http1::{InvalidMessage, chunk_decoder::ChunkDecoder},
};

/// Reader of one body. Its variant states how the end of the body is found.
#[derive(Debug)]
pub(crate) enum BodyReader {
    /// So many bytes remain.
    Length(u64),
    /// The body is chunked.
    Chunked(ChunkDecoder),
    /// The body ends with the connection.
    UntilClose {
        /// Whether the connection has ended.
        has_ended: bool,
    },
}

impl BodyReader {
    /// Creates the reader of a body that ends with the connection, or of a tunnel.
    pub(crate) fn until_close() -> Self {
        Self::UntilClose { has_ended: false }
    }

    /// Creates the reader of the body of a request (RFC 9112 section 6.3).
    ///
    /// # Errors
    /// If the framing fields are invalid or contradictory, or an HTTP/1.0 request is chunked.
    pub(crate) fn from_request(head: &RequestHead) -> Result<Self, InvalidMessage> {
        match head.framing.map_err(|_| InvalidMessage)? {
            BodyFraming::Unstated => Ok(Self::Length(0)),
            BodyFraming::Length(length) => Ok(Self::Length(length)),
            BodyFraming::Chunked if head.version == Version::HTTP_10 => Err(InvalidMessage),
            BodyFraming::Chunked => Ok(Self::Chunked(ChunkDecoder::default())),
            BodyFraming::ChunkedWithLength => Err(InvalidMessage),
        }
    }

    /// Creates the reader of the body of a final response (RFC 9112 section 6.3).
    ///
    /// # Errors
    /// If the framing fields are invalid, or an HTTP/1.0 response is chunked.
    pub(crate) fn from_response(
        request_method: &Method,
        head: &ResponseHead,
    ) -> Result<Self, InvalidMessage> {
        let framing = head.framing.map_err(|_| InvalidMessage)?;
        if framing.is_chunked() && head.version == Version::HTTP_10 {
            return Err(InvalidMessage);
        }
        if framing::is_without_body(request_method, head.status) {
            return Ok(Self::Length(0));
        }
        Ok(match framing {
            BodyFraming::Unstated => Self::until_close(),
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked | BodyFraming::ChunkedWithLength => {
                Self::Chunked(ChunkDecoder::default())
            }
        })
    }

    /// Returns whether the body has been read to its end.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(remaining) => *remaining == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose { has_ended } => *has_ended,
        }
    }

    /// Returns the trailers, once the body has been read to its end; `None` if there are none.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            Self::Length(_) | Self::UntilClose { .. } => None,
        }
    }

    /// Returns whether the body has been read to its end, and its end was not the close of the
    /// connection.
    pub(crate) fn ends_before_close(&self) -> bool {
        self.is_done() && !matches!(self, Self::UntilClose { .. })
    }

    /// Takes the next part of the body from the input. `is_end` states that no further input
    /// follows.
    ///
    /// # Errors
    /// If the input is malformed, or ends before the body does.
    pub(crate) fn read(
        &mut self,
        input: &mut BytesMut,
        is_end: bool,
    ) -> Result<BodyProgress, InvalidMessage> {
        let progress = match self {
            Self::Length(0) => BodyProgress::Done,
            Self::Length(_) | Self::UntilClose { .. } if input.is_empty() => {
                BodyProgress::NeedsInput
            }
            Self::Length(remaining) => {
                let available = input.len() as u64;
                let count = usize::try_from((*remaining).min(available)).unwrap_or(usize::MAX);
                *remaining -= count as u64;
                BodyProgress::Data(input.split_to(count).freeze())
            }
            Self::Chunked(decoder) => decoder.decode(input)?,
            Self::UntilClose { .. } => BodyProgress::Data(input.split().freeze()),
        };
        match (progress, &mut *self) {
            (BodyProgress::NeedsInput, Self::UntilClose { has_ended }) if is_end => {
                *has_ended = true;
                Ok(BodyProgress::Done)
            }
            // The body is incomplete. It must never look complete to the other side.
            (BodyProgress::NeedsInput, _) if is_end => Err(InvalidMessage),
            (progress, _) => Ok(progress),
        }
    }
}

#[cfg(test)]
mod tests;

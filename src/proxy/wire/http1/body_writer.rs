//! Writes the body of a message in the framing that its head states.

use std::{borrow::Cow, io::Write as _};

use http::Method;

use crate::{
    message::{
        ResponseHead,
        framing::{self, BodyFraming},
        headers::Headers,
    },
    proxy::wire::http1::InvalidMessage,
};

/// Writer of one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyWriter {
    /// So many bytes are still to be written; a message without a body has none.
    Length(u64),
    Chunked,
    /// The bytes of a tunnel, or of a body that ends with the connection.
    Tunnel,
    /// The message has no body, whatever its fields say. Bytes are discarded.
    None,
}

impl BodyWriter {
    /// Creates the writer of the body of a request.
    pub(crate) fn from_request(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Unstated => Self::Length(0),
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked | BodyFraming::ChunkedWithLength => Self::Chunked,
        }
    }

    /// Creates the writer of the body of a response. Without a length or chunks, the body ends
    /// with the connection.
    ///
    /// # Errors
    /// If the framing fields are invalid.
    pub(crate) fn from_response(
        request_method: &Method,
        head: &ResponseHead,
    ) -> Result<Self, InvalidMessage> {
        if framing::is_without_body(request_method, head.status) {
            return Ok(Self::None);
        }
        Ok(match head.framing.map_err(|_| InvalidMessage)? {
            BodyFraming::Unstated => Self::Tunnel,
            framing => Self::from_request(framing),
        })
    }

    /// Returns a part of the body with its framing. Without framing, the part is not copied.
    ///
    /// # Errors
    /// If the body would be longer than its head announces.
    pub(crate) fn write<'a>(&mut self, part: &'a [u8]) -> Result<Cow<'a, [u8]>, InvalidMessage> {
        match self {
            Self::Length(remaining) => {
                let left = remaining.checked_sub(part.len() as u64);
                *remaining = left.ok_or(InvalidMessage)?;
                Ok(Cow::Borrowed(part))
            }
            Self::Tunnel => Ok(Cow::Borrowed(part)),
            // An empty chunk would end the body.
            Self::Chunked if part.is_empty() => Ok(Cow::Borrowed(b"")),
            Self::Chunked => {
                let mut chunk = Vec::with_capacity(part.len() + 32);
                // Writing to a Vec cannot fail.
                _ = write!(chunk, "{:x}\r\n", part.len());
                chunk.extend_from_slice(part);
                chunk.extend_from_slice(b"\r\n");
                Ok(Cow::Owned(chunk))
            }
            Self::None => Ok(Cow::Borrowed(b"")),
        }
    }

    /// Returns the bytes that end the body. Only a chunked body can have trailers; others drop
    /// them.
    ///
    /// # Errors
    /// If the body is shorter than its head announces.
    pub(crate) fn finish(
        &mut self,
        trailers: Option<&Headers>,
    ) -> Result<Cow<'static, [u8]>, InvalidMessage> {
        match self {
            Self::Length(0) | Self::Tunnel | Self::None => Ok(Cow::Borrowed(b"")),
            Self::Length(_) => Err(InvalidMessage),
            Self::Chunked => {
                *self = Self::Length(0);
                Ok(trailers.map_or(Cow::Borrowed(b"0\r\n\r\n"), |trailers| {
                    Cow::Owned(last_chunk(trailers))
                }))
            }
        }
    }
}

/// Returns the last chunk with its trailers.
fn last_chunk(trailers: &Headers) -> Vec<u8> {
    let mut bytes = b"0\r\n".to_vec();
    trailers.write_http1(&mut bytes);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

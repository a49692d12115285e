//! Writes the body of a message in the framing that its head states.

use std::io::Write as _;

use http::{HeaderMap, Method, StatusCode, header};
use pingora::http::ResponseHeader;

use crate::proxy::wire::{framing_fields, http1::InvalidMessage};

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
    /// Creates the writer of the body that the framing fields of a head announce.
    ///
    /// # Errors
    /// If the framing fields are invalid.
    pub(crate) fn from_fields(headers: &HeaderMap) -> Result<Self, InvalidMessage> {
        let is_chunked = framing_fields::is_chunked(headers).map_err(|_| InvalidMessage)?;
        let length = framing_fields::content_length(headers).map_err(|_| InvalidMessage)?;
        Ok(if is_chunked {
            Self::Chunked
        } else {
            Self::Length(length.unwrap_or(0))
        })
    }

    /// Creates the writer of the body of a response. Without a length or chunks, the body ends
    /// with the connection.
    ///
    /// # Errors
    /// If the framing fields are invalid.
    pub(crate) fn from_response(
        request_method: &Method,
        head: &ResponseHeader,
    ) -> Result<Self, InvalidMessage> {
        let has_no_body = request_method == Method::HEAD
            || head.status == StatusCode::NO_CONTENT
            || head.status == StatusCode::NOT_MODIFIED;
        if has_no_body {
            return Ok(Self::None);
        }
        let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
        match Self::from_fields(&head.headers)? {
            Self::Length(0) if !has_length => Ok(Self::Tunnel),
            writer => Ok(writer),
        }
    }

    /// Appends a part of the body to the output.
    ///
    /// # Errors
    /// If the body would be longer than its head announces.
    pub(crate) fn write(&mut self, part: &[u8], out: &mut Vec<u8>) -> Result<(), InvalidMessage> {
        match self {
            Self::Length(remaining) => {
                *remaining = remaining
                    .checked_sub(part.len() as u64)
                    .ok_or(InvalidMessage)?;
                out.extend_from_slice(part);
            }
            // An empty chunk would end the body.
            Self::Chunked if part.is_empty() => {}
            Self::Chunked => {
                // Writing to a Vec cannot fail.
                _ = write!(out, "{:x}\r\n", part.len());
                out.extend_from_slice(part);
                out.extend_from_slice(b"\r\n");
            }
            Self::Tunnel => out.extend_from_slice(part),
            Self::None => {}
        }
        Ok(())
    }

    /// Appends the end of the body.
    ///
    /// # Errors
    /// If the body is shorter than its head announces.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), InvalidMessage> {
        match self {
            Self::Length(0) | Self::Tunnel | Self::None => Ok(()),
            Self::Length(_) => Err(InvalidMessage),
            Self::Chunked => {
                *self = Self::Length(0);
                out.extend_from_slice(b"0\r\n\r\n");
                Ok(())
            }
        }
    }
}

//! Writes the body of a message in the framing that its head states.

use std::io::Write as _;

use http::HeaderMap;

use crate::proxy::wire::{framing_fields, http1::InvalidMessage};

/// Writer of one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyWriter {
    /// So many bytes are still to be written; a message without a body has none.
    Length(u64),
    Chunked,
    /// The bytes of a tunnel, without framing.
    Tunnel,
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
        }
        Ok(())
    }

    /// Appends the end of the body.
    ///
    /// # Errors
    /// If the body is shorter than its head announces.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), InvalidMessage> {
        match self {
            Self::Length(0) | Self::Tunnel => Ok(()),
            Self::Length(_) => Err(InvalidMessage),
            Self::Chunked => {
                *self = Self::Length(0);
                out.extend_from_slice(b"0\r\n\r\n");
                Ok(())
            }
        }
    }
}

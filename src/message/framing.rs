//! The framing of a body, as the fields of its message state it (RFC 9112 section 6).
//!
//! Two implementations that read these fields differently disagree about where a message ends.
//! Every value that is not exactly as the grammar defines it is therefore invalid. The fields are
//! read once, when a head arrives. The module does not decide what follows.

use http::{Method, StatusCode, header};

use crate::message::headers::Headers;

/// How a message states where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// No field states it. A request then has no body, and a response ends with its connection.
    Unstated,
    /// The body has so many bytes.
    Length(u64),
    /// The body is in chunks.
    Chunked,
    /// The body is in chunks, and the message states a length too. A request is then invalid. The
    /// length of a response has no meaning, but the sender is not trusted with another request.
    ChunkedWithLength,
}

/// Error for fields that are malformed, contradictory, or use an unsupported transfer coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidFraming;

impl BodyFraming {
    /// Reads the framing from the fields of a message.
    ///
    /// # Errors
    /// If a field is malformed, or the fields contradict each other.
    pub fn from_headers(headers: &Headers) -> Result<Self, InvalidFraming> {
        Ok(match (is_chunked(headers)?, content_length(headers)?) {
            (false, None) => Self::Unstated,
            (false, Some(length)) => Self::Length(length),
            (true, None) => Self::Chunked,
            (true, Some(_)) => Self::ChunkedWithLength,
        })
    }

    /// Returns whether the body is in chunks.
    #[must_use]
    pub fn is_chunked(self) -> bool {
        matches!(self, Self::Chunked | Self::ChunkedWithLength)
    }

    /// Returns the length of the body; `None` if it is not stated, or has no meaning.
    #[must_use]
    pub fn length(self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(length),
            Self::Unstated | Self::Chunked | Self::ChunkedWithLength => None,
        }
    }
}

/// Returns the length that `content-length` states; `None` without the field.
///
/// A list, or repeated lines, are valid if all values are equal.
///
/// # Errors
/// If a value is not a decimal number below 2^63, or two values differ.
fn content_length(headers: &Headers) -> Result<Option<u64>, InvalidFraming> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH);
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let mut length = None;
    for line in std::iter::once(first).chain(lines) {
        for value in line.split(|byte| *byte == b',') {
            let value = parse_decimal(value.trim_ascii())?;
            if length.is_some_and(|length| length != value) {
                return Err(InvalidFraming);
            }
            length = Some(value);
        }
    }
    Ok(length)
}

/// Returns whether the body is in chunks.
///
/// # Errors
/// If `transfer-encoding` is anything else than `chunked` once, in any case.
fn is_chunked(headers: &Headers) -> Result<bool, InvalidFraming> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING);
    let Some(coding) = codings.next() else {
        return Ok(false);
    };
    let is_chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    if is_chunked && codings.next().is_none() {
        Ok(true)
    } else {
        Err(InvalidFraming)
    }
}

/// Returns whether a final response has no body, whatever its fields state (RFC 9112 section
/// 6.3).
#[must_use]
pub fn is_without_body(request_method: &Method, status: StatusCode) -> bool {
    request_method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

fn parse_decimal(text: &[u8]) -> Result<u64, InvalidFraming> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(InvalidFraming);
    }
    let number = text.iter().try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    number
        .filter(|number| i64::try_from(*number).is_ok())
        .ok_or(InvalidFraming)
}

#[cfg(test)]
mod tests;

//! Parses the head of a message and the trailers of a body, with `httparse` as the tokenizer.
//!
//! `httparse` accepts a bare LF as the end of a line and skips empty lines before the start
//! line. Both are errors here.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use httparse::{EMPTY_HEADER, Status};
use pingora::http::ResponseHeader;

use crate::proxy::wire::http1::InvalidMessage;

/// Maximum number of fields in a head, and in trailers.
const MAX_FIELDS: usize = 256;

/// Maximum size of the head of a response, in bytes.
const MAX_RESPONSE_HEAD_BYTES: usize = 256 << 10;

/// Takes the head of a response from the input; `None` if it is not complete yet.
///
/// # Errors
/// If the input is no valid head, or the head is too large.
pub(crate) fn take_response(
    input: &mut BytesMut,
) -> Result<Option<ResponseHeader>, InvalidMessage> {
    if !b"HTTP/".starts_with(&input[..input.len().min(5)]) {
        return Err(InvalidMessage);
    }
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Status::Complete(length) = response.parse(input).map_err(|_| InvalidMessage)? else {
        return if input.len() > MAX_RESPONSE_HEAD_BYTES {
            Err(InvalidMessage)
        } else {
            Ok(None)
        };
    };
    if !has_strict_line_ends(&input[..length]) {
        return Err(InvalidMessage);
    }
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(InvalidMessage)?;
    let version = match response.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let reason = response.reason.map(str::to_owned);
    // Offsets survive the split of the input, and the values share its memory.
    let base = input.as_ptr() as usize;
    let mut ranges = [(0, 0, 0, 0); MAX_FIELDS];
    let count = response.headers.len();
    for (range, field) in ranges.iter_mut().zip(response.headers.iter()) {
        let name = field.name.as_ptr() as usize - base;
        let value = field.value.as_ptr() as usize - base;
        *range = (
            name,
            name + field.name.len(),
            value,
            value + field.value.len(),
        );
    }
    let head = input.split_to(length).freeze();
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    parts.headers = collect_fields(&head, &ranges[..count])?;
    let mut response = ResponseHeader::from(parts);
    response
        .set_reason_phrase(reason.as_deref())
        .map_err(|_| InvalidMessage)?;
    Ok(Some(response))
}

/// Start and end of a name, and of its value, in a head.
type FieldRange = (usize, usize, usize, usize);

fn collect_fields(head: &Bytes, ranges: &[FieldRange]) -> Result<HeaderMap, InvalidMessage> {
    let mut headers = HeaderMap::with_capacity(ranges.len());
    for &(name_start, name_end, value_start, value_end) in ranges {
        let name = HeaderName::from_bytes(&head[name_start..name_end]);
        let value = HeaderValue::from_maybe_shared(head.slice(value_start..value_end));
        headers.append(
            name.map_err(|_| InvalidMessage)?,
            value.map_err(|_| InvalidMessage)?,
        );
    }
    Ok(headers)
}

/// Returns the length of trailers with the empty line after them; `None` if they are not
/// complete yet.
///
/// # Errors
/// If the input is no valid list of fields.
pub(super) fn parse_trailers(input: &[u8]) -> Result<Option<usize>, InvalidMessage> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(input, &mut fields).map_err(|_| InvalidMessage)? {
        Status::Complete((length, _)) if has_strict_line_ends(&input[..length]) => Ok(Some(length)),
        Status::Complete(_) => Err(InvalidMessage),
        Status::Partial => Ok(None),
    }
}

/// Returns whether each line ends with CRLF, and not with LF alone.
fn has_strict_line_ends(text: &[u8]) -> bool {
    let mut previous = 0;
    text.iter().all(|byte| {
        let is_strict = *byte != b'\n' || previous == b'\r';
        previous = *byte;
        is_strict
    })
}

#[cfg(test)]
mod tests;

//! Parses the head of a message and the trailers of a body, with `httparse` as the tokenizer.
//!
//! `httparse` accepts a bare LF as the end of a line and skips empty lines before the start
//! line. Both are errors here, except one empty line before a request.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{Method, StatusCode, Version};
use httparse::{EMPTY_HEADER, ParserConfig, Status};

use crate::{
    message::{RequestHead, ResponseHead, framing::BodyFraming, headers::Headers},
    proxy::wire::http1::InvalidMessage,
};

/// Maximum number of fields in the head of a response, and in trailers.
const MAX_FIELDS: usize = 256;

/// Highest limit that a listener can set for the number of fields in a request head.
const MAX_REQUEST_FIELDS: usize = 1024;

/// Maximum length of a method, in bytes.
const MAX_METHOD_BYTES: usize = 64;

/// Maximum length of the name of a field, in bytes. HTTP/2 libraries accept no longer name.
const MAX_NAME_BYTES: usize = u16::MAX as usize;

/// Maximum size of the head of a response, in bytes.
const MAX_RESPONSE_HEAD_BYTES: usize = 256 << 10;

/// Why a request head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidRequestHead {
    Malformed,
    /// The head has too many bytes or too many fields.
    TooLarge,
}

/// Maximum size of a request head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    /// Maximum number of bytes.
    pub(crate) max_bytes: usize,
    /// Maximum number of fields, at most 1024.
    pub(crate) max_fields: usize,
}

/// Takes the head of a request from the input; `None` if it is not complete yet.
///
/// # Errors
/// If the input is no valid head, or the head exceeds the limits.
pub(crate) fn take_request(
    input: &mut BytesMut,
    limits: HeadLimits,
) -> Result<Option<RequestHead>, InvalidRequestHead> {
    // RFC 9112 section 2.2: a client may send an empty line after the body of a POST.
    let start = if input.starts_with(b"\r\n") { 2 } else { 0 };
    match &input[start..] {
        b"" => return Ok(None),
        b"\r" if start == 0 => return Ok(None),
        [b'\r' | b'\n', ..] => return Err(InvalidRequestHead::Malformed),
        _ => {}
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_REQUEST_FIELDS];
    let fields = &mut fields[..limits.max_fields.min(MAX_REQUEST_FIELDS)];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(&input[start..], fields);
    let length = match parsed {
        Ok(Status::Complete(length)) if length <= limits.max_bytes => length,
        Ok(Status::Partial) if input.len() - start <= limits.max_bytes => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(InvalidRequestHead::TooLarge),
        Err(_) => return Err(InvalidRequestHead::Malformed),
    };
    let target = request.path.unwrap_or_default();
    let method = request.method.unwrap_or_default();
    // A fragment is never sent (RFC 3986 section 3.5).
    if !has_strict_line_ends(&input[start..start + length])
        || target.contains('#')
        || method.len() > MAX_METHOD_BYTES
    {
        return Err(InvalidRequestHead::Malformed);
    }
    let method = Method::from_bytes(method.as_bytes());
    let method = method.map_err(|_| InvalidRequestHead::Malformed)?;
    // One space separates the two (RFC 9112 section 3).
    let target_start = start + method.as_str().len() + 1;
    let target = target_start..target_start + target.len();
    let headers = locate_fields(input, request.headers);
    let headers = headers.map_err(|_| InvalidRequestHead::Malformed)?;
    let version = match request.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let head = input.split_to(start + length).freeze();
    let headers = headers.with_buffer(head.clone());
    Ok(Some(RequestHead {
        method,
        target: head.slice(target),
        authority: None,
        version,
        framing: BodyFraming::from_headers(&headers),
        headers,
    }))
}

/// Takes the head of a response from the input; `None` if it is not complete yet.
///
/// # Errors
/// If the input is no valid head, or the head is too large.
pub(crate) fn take_response(input: &mut BytesMut) -> Result<Option<ResponseHead>, InvalidMessage> {
    if !b"HTTP/".starts_with(&input[..input.len().min(5)]) {
        return Err(InvalidMessage);
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        input,
        &mut fields,
    );
    let Status::Complete(length) = parsed.map_err(|_| InvalidMessage)? else {
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
    let reason = response
        .reason
        .filter(|reason| status.canonical_reason() != Some(reason))
        .map(Box::from);
    let headers = locate_fields(input, response.headers)?;
    let headers = headers.with_buffer(input.split_to(length).freeze());
    Ok(Some(ResponseHead {
        status,
        version,
        reason,
        framing: BodyFraming::from_headers(&headers),
        headers,
    }))
}

/// Returns the fields without their buffer, which is split from the input afterwards.
fn locate_fields(input: &[u8], fields: &[httparse::Header<'_>]) -> Result<Headers, InvalidMessage> {
    if fields.iter().any(|field| field.name.len() > MAX_NAME_BYTES) {
        return Err(InvalidMessage);
    }
    let fields = fields
        .iter()
        .map(|field| (field.name.as_bytes(), field.value));
    Headers::locate(input, fields).map_err(|_| InvalidMessage)
}

/// Takes trailers and the empty line after them from the input; `None` if they are not complete
/// yet.
///
/// # Errors
/// If the input is no valid list of fields.
pub(super) fn take_trailers(input: &mut BytesMut) -> Result<Option<Headers>, InvalidMessage> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let parsed = httparse::parse_headers(input, &mut fields).map_err(|_| InvalidMessage)?;
    let Status::Complete((length, fields)) = parsed else {
        return Ok(None);
    };
    if !has_strict_line_ends(&input[..length]) {
        return Err(InvalidMessage);
    }
    let trailers = locate_fields(input, fields)?;
    Ok(Some(trailers.with_buffer(input.split_to(length).freeze())))
}

/// Returns whether each line ends with CRLF, and not with LF alone. It has no early exit, so that
/// the compiler can vectorize it.
fn has_strict_line_ends(text: &[u8]) -> bool {
    let pairs = text.iter().zip(text.iter().skip(1));
    let has_bare_lf = pairs.fold(false, |found, (first, second)| {
        found | (*second == b'\n' && *first != b'\r')
    });
    !has_bare_lf && text.first() != Some(&b'\n')
}

#[cfg(test)]
mod tests;

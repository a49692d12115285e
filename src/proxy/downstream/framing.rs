//! Rejects requests that two HTTP implementations could understand differently.
//!
//! RFC 9112 section 6.1 permits to ignore the length of a chunked request. Such requests enable
//! request smuggling, so this module rejects them. It looks only at the head and does not read
//! the body.

use http::{Method, Version, header};

use crate::{
    message::{RequestHead, framing::BodyFraming},
    proxy::{
        downstream::client::Client,
        request::rejection::Rejection,
        wire::{header_names, http1::body_reader::BodyReader},
    },
    telemetry::reason::Reason,
};

/// Checks the framing and the declared body size of a request.
///
/// # Errors
/// A rejection of ambiguous framing, of a field name that is not a token, of CONNECT, of
/// HTTP/1.1 without a Host header, or of a body or a number of fields that exceeds the limit of
/// the listener.
pub(crate) fn check(client: &Client) -> Result<(), Rejection> {
    let head = client.head();
    if head.method == Method::CONNECT {
        return Err(Rejection::from_reason(Reason::MethodNotSupported));
    }
    let limits = &client.listener.limits;
    // HTTP/1 checks both limits before it stores the fields.
    if client.is_http2()
        && (head.headers.len() > limits.max_headers || http1_size(head) > limits.max_header_bytes)
    {
        return Err(Rejection::from_reason(Reason::HeaderTooLarge));
    }
    // The parser of HTTP/1 accepts only tokens.
    let is_token = |name: &str| header_names::is_token(name.as_bytes());
    if client.is_http2() && !head.headers.iter().all(|(name, _)| is_token(name)) {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    let body = BodyReader::from_request(head);
    let body = body.map_err(|_| Rejection::from_reason(Reason::BadRequest))?;
    // A list is valid, but another implementation may use its first value only.
    if let Ok(BodyFraming::Length(_)) = head.framing {
        let lengths = || head.headers.get_all(header::CONTENT_LENGTH);
        if lengths().count() > 1 || lengths().any(|length| length.contains(&b',')) {
            return Err(Rejection::from_reason(Reason::BadRequest));
        }
    }
    let host_count = head.headers.get_all(header::HOST).count();
    if host_count > 1 || (head.version == Version::HTTP_11 && host_count == 0) {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    if matches!(body, BodyReader::Length(length) if length > limits.max_body_bytes) {
        return Err(Rejection::from_reason(Reason::BodyTooLarge));
    }
    Ok(())
}

/// Returns the size of a head in HTTP/1, in bytes, so that the limit is the same for both
/// protocols.
fn http1_size(head: &RequestHead) -> usize {
    const REQUEST_LINE_BYTES: usize = "  HTTP/1.1\r\n".len();
    const FIELD_BYTES: usize = ": \r\n".len();
    const END_BYTES: usize = "\r\n".len();
    let host = head
        .authority
        .as_ref()
        .map_or(0, |authority| "host".len() + FIELD_BYTES + authority.len());
    let path = head.target.len().max(1);
    let fields = head.headers.size_bytes() + head.headers.len() * FIELD_BYTES;
    head.method.as_str().len() + path + REQUEST_LINE_BYTES + host + fields + END_BYTES
}

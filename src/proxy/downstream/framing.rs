//! Rejects requests that two HTTP implementations could understand differently.
//!
//! pingora rejects a second Host header, content lengths that differ, a transfer coding that
//! does not end in `chunked`, and malformed heads. It accepts a request with both a length and
//! a transfer coding, and drops the length. RFC 9112 section 6.1 permits both this and a
//! rejection. Such requests enable request smuggling, so this module rejects them. It looks
//! only at the head and does not read the body.

use http::{Method, Version, header};

use crate::{
    proxy::{
        downstream::client::{Client, DownstreamStream},
        request::rejection::Rejection,
        wire::framing_fields,
    },
    telemetry::reason::Reason,
};

/// Checks the framing and the declared body size of a request.
///
/// # Errors
/// A rejection of ambiguous framing, of a field name that is not a token, of CONNECT, of
/// HTTP/0.9, of HTTP/1.1 without a Host header, or of a body that exceeds the limit of the
/// listener.
pub(crate) fn check(client: &Client) -> Result<(), Rejection> {
    let head = client.head();
    if head.method == Method::CONNECT {
        return Err(Rejection::from_reason(Reason::MethodNotSupported));
    }
    // The `http` crate accepts `"` in names, which no HTTP/1 field name contains.
    let has_invalid_name = head.headers.keys().any(|name| name.as_str().contains('"'));
    if has_invalid_name {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    let bad_request = |_| Rejection::from_reason(Reason::BadRequest);
    let is_chunked = framing_fields::is_chunked(&head.headers).map_err(bad_request)?;
    let content_length = framing_fields::content_length(&head.headers).map_err(bad_request)?;
    // pingora removes the length of a chunked request from the parsed head.
    if is_chunked && (content_length.is_some() || has_raw_content_length(client)) {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    // A list is valid, but another implementation may use its first value only.
    let lengths = head.headers.get_all(header::CONTENT_LENGTH);
    if lengths.iter().count() > 1
        || lengths
            .iter()
            .any(|length| length.as_bytes().contains(&b','))
    {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    if head.version == Version::HTTP_11 && !head.headers.contains_key(header::HOST) {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    if head.version == Version::HTTP_09 {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    if content_length.is_some_and(|length| length > client.listener.limits.max_body_bytes) {
        return Err(Rejection::from_reason(Reason::BodyTooLarge));
    }
    Ok(())
}

/// Returns whether the raw head contains a content length. pingora has removed it from the
/// parsed head.
fn has_raw_content_length(client: &Client) -> bool {
    let DownstreamStream::Http1(http1) = &client.stream else {
        return false;
    };
    let raw = http1.session.to_h1_raw();
    raw.split(|byte| *byte == b'\n').any(|line| {
        line.get(..15)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"))
    })
}

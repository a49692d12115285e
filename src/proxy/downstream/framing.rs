//! Rejects requests that two HTTP implementations could understand differently.
//!
//! RFC 9112 section 6.1 permits to ignore the length of a chunked request. Such requests enable
//! request smuggling, so this module rejects them. It looks only at the head and does not read
//! the body.

use http::{Method, Version, header};

use crate::{
    proxy::{downstream::client::Client, request::rejection::Rejection, wire::framing_fields},
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
    // HTTP/1 checks the number before it stores the fields.
    if head.headers.len() > client.listener.limits.max_headers {
        return Err(Rejection::from_reason(Reason::HeaderTooLarge));
    }
    // The `http` crate accepts `"` in names, which no HTTP/1 field name contains.
    let has_invalid_name = head.headers.keys().any(|name| name.as_str().contains('"'));
    if has_invalid_name {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    let bad_request = |_| Rejection::from_reason(Reason::BadRequest);
    let is_chunked = framing_fields::is_chunked(&head.headers).map_err(bad_request)?;
    let content_length = framing_fields::content_length(&head.headers).map_err(bad_request)?;
    let is_old = head.version == Version::HTTP_10;
    if is_chunked && (content_length.is_some() || is_old) {
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
    let host_count = head.headers.get_all(header::HOST).iter().count();
    if host_count > 1 || (head.version == Version::HTTP_11 && host_count == 0) {
        return Err(Rejection::from_reason(Reason::BadRequest));
    }
    if content_length.is_some_and(|length| length > client.listener.limits.max_body_bytes) {
        return Err(Rejection::from_reason(Reason::BodyTooLarge));
    }
    Ok(())
}

//! Refuses requests that two readers could understand differently.
//!
//! pingora refuses a second Host, differing lengths, a transfer coding that does not end in `chunked`, and malformed heads. It
//! takes a request with both a length and a transfer coding, by dropping the length; RFC 9112 section 6.1 allows that and asks
//! for care. A sidecar in front of money has no use for such requests, so they are refused here.

use http::{Method, Version, header};

use crate::{
    proxy::{
        downstream::client::{Client, DownstreamStream},
        request::rejection::Rejection,
    },
    telemetry::reason::Reason,
};

/// Checks the head of a request.
pub(crate) fn check(client: &Client) -> Result<(), Rejection> {
    let head = client.head();
    if head.method == Method::CONNECT {
        return Err(Rejection::from_reason(Reason::MethodNotSupported));
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // pingora looks at the last coding only, and passes the field on as it is; another reader may look at the first.
        let is_chunked_only = codings.next().is_none()
            && coding
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"chunked");
        if !is_chunked_only || has_raw_content_length(client) {
            return Err(Rejection::from_reason(Reason::BadRequest));
        }
    }
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
    let content_length = client
        .header_str(&header::CONTENT_LENGTH)
        .and_then(|length| length.trim().parse::<u64>().ok());
    if content_length.is_some_and(|length| length > client.listener.limits.max_body_bytes) {
        return Err(Rejection::from_reason(Reason::BodyTooLarge));
    }
    Ok(())
}

/// The parsed head no longer has the length, so the bytes are looked at.
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

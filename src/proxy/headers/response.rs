//! Builds the head of a response to the client.
//!
//! The module decides framing, added fields and removed fields. It handles final and interim
//! heads of a backend; rejections have their own writer.

use http::{StatusCode, Version, header};

use crate::{
    message::{ResponseHead, headers::Headers},
    proxy::{
        downstream::client::Client,
        headers::{
            CHUNKED, UPGRADE, VIA, VIA_HTTP2,
            hop_by_hop::{apply_modifier, copy_end_to_end_headers},
            lifecycle, rate_limit,
        },
        request::{context::RequestContext, rate_limit_outcome::RateLimitOutcome},
        wire::{framing_fields, header_names::REASON},
    },
};

/// Builds the response head that the client receives from the head of the backend.
pub(crate) fn build_response_head(
    context: &RequestContext<'_>,
    client: &Client,
    response_head: &ResponseHead,
    is_upgrade: bool,
    rate_limits: Option<&RateLimitOutcome>,
) -> ResponseHead {
    let mut headers = copy_end_to_end_headers(&response_head.headers);
    set_body_framing(&mut headers, response_head.status, client);
    if let Some(protocol) = response_head
        .headers
        .get(header::UPGRADE)
        .filter(|_| is_upgrade)
    {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol);
    }
    headers.append(
        header::VIA,
        if context.is_backend_http2() {
            VIA_HTTP2
        } else {
            VIA
        },
    );
    if let Some(rate_limits) = rate_limits {
        rate_limit::append_limit_headers(context.route, rate_limits, &mut headers);
    }
    if context.is_inbound() {
        // Only a sidecar sets the reason. Behind an inbound route is the app, whose value is
        // not trusted.
        headers.remove(REASON);
        for (name, value) in lifecycle::current_headers(context.worker, context.active_policy) {
            headers.insert(name, &*value);
        }
    }
    apply_modifier(&mut headers, &context.route.spec.filters.response_headers);
    ResponseHead {
        status: response_head.status,
        version: response_head.version,
        reason: response_head.reason.clone(),
        headers,
    }
}

/// Sets the framing fields so that the client can detect the end of the body.
///
/// `content-length` is reduced to one value without leading zeros (RFC 9110 section 8.6). Interim
/// and 204 responses have no framing fields.
fn set_body_framing(headers: &mut Headers, status: StatusCode, client: &Client) {
    let is_framed = !status.is_informational() && status != StatusCode::NO_CONTENT;
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    // The length of a chunked response is not that of its body (RFC 9112 section 6.3).
    let length = match framing_fields::content_length(headers) {
        Ok(length) if is_framed && !is_chunked => length,
        _ => None,
    };
    match length {
        Some(length) => headers.insert_number(header::CONTENT_LENGTH, length),
        None => headers.remove(header::CONTENT_LENGTH),
    }
    // HTTP/2 and HTTP/1.0 have no chunked encoding. The close of the connection ends the body of
    // an HTTP/1.0 response.
    let request = client.head();
    if !is_framed || request.version != Version::HTTP_11 {
        headers.remove(header::TRANSFER_ENCODING);
    } else if !is_chunked
        && length.is_none()
        && !framing_fields::is_without_body(&request.method, status)
    {
        headers.insert(header::TRANSFER_ENCODING, CHUNKED);
    }
}

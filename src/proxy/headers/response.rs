//! Builds the head of a response to the client.
//!
//! The module decides framing, added fields and removed fields. It handles final and interim
//! heads of a backend; rejections have their own writer.

use http::{StatusCode, Version, header};

use crate::{
    message::{
        ResponseHead,
        framing::{self, BodyFraming},
        headers::Headers,
    },
    proxy::{
        downstream::client::Client,
        headers::{
            CHUNKED, UPGRADE, VIA, VIA_HTTP2,
            hop_by_hop::{apply_modifier, copy_end_to_end_headers},
            lifecycle, rate_limit,
        },
        request::{context::RequestContext, rate_limit_outcome::RateLimitOutcome},
        wire::header_names::REASON,
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
    let framing = set_body_framing(&mut headers, response_head, client);
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
        framing: Ok(framing),
    }
}

/// Sets the framing fields so that the client can detect the end of the body, and returns the
/// framing.
///
/// `content-length` is reduced to one value without leading zeros (RFC 9110 section 8.6). Interim
/// and 204 responses have no framing fields.
fn set_body_framing(
    headers: &mut Headers,
    response_head: &ResponseHead,
    client: &Client,
) -> BodyFraming {
    let status = response_head.status;
    let is_framed = !status.is_informational() && status != StatusCode::NO_CONTENT;
    let stated = response_head.framing.unwrap_or(BodyFraming::Unstated);
    let length = stated.length().filter(|_| is_framed);
    match length {
        Some(length) => headers.insert_number(header::CONTENT_LENGTH, length),
        // The length of a chunked response is not that of its body (RFC 9112 section 6.3).
        None => headers.remove(header::CONTENT_LENGTH),
    }
    let request = client.head();
    // HTTP/2 and HTTP/1.0 have no chunked encoding. The close of the connection ends the body of
    // an HTTP/1.0 response.
    if !is_framed || request.version != Version::HTTP_11 {
        headers.remove(header::TRANSFER_ENCODING);
        return length.map_or(BodyFraming::Unstated, BodyFraming::Length);
    }
    let needs_chunks = length.is_none() && !framing::is_without_body(&request.method, status);
    if needs_chunks && !stated.is_chunked() {
        headers.insert(header::TRANSFER_ENCODING, CHUNKED);
    }
    match length {
        Some(length) => BodyFraming::Length(length),
        None if needs_chunks || stated.is_chunked() => BodyFraming::Chunked,
        None => BodyFraming::Unstated,
    }
}

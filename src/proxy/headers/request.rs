//! Builds the head of a request to a backend.
//!
//! The module does not send the head or know the framing of the connection.

use std::borrow::Cow;

use http::{
    HeaderValue,
    header::{self, InvalidHeaderValue},
};

use crate::{
    message::{
        framing::BodyFraming,
        headers::{Headers, as_text},
    },
    policy::snapshot::LoadBalancerSpec,
    proxy::{
        headers::{
            CHUNKED, UPGRADE, VIA, VIA_HTTP2,
            hop_by_hop::{apply_modifier, copy_end_to_end_headers},
        },
        request::{
            authority::RequestTarget,
            context::RequestContext,
            deadline::{TimeLeft, format_grpc_timeout},
            routing,
            view::RequestView,
        },
        upstream::request_head::UpstreamRequestHead,
        wire::{
            header_names::{
                ATTEMPT, DEADLINE, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, GRPC_TIMEOUT,
                REQUEST_ID, WEIGHED,
            },
            list_field::lists_token,
        },
    },
    state::topology::endpoint::EndpointState,
};

const TE: &str = "te";
const TRAILERS: &str = "trailers";

/// Values that distinguish one attempt from other attempts of the same request.
pub(crate) struct AttemptHead<'a> {
    pub(crate) endpoint: &'a EndpointState,
    /// Attempt number that the backend receives, from 1. It continues the count of the sender.
    pub(crate) number: u32,
    pub(crate) has_body: bool,
    pub(crate) time_left: TimeLeft,
}

/// Builds the head of one attempt.
///
/// # Errors
/// If a rewritten host is no valid header value.
pub(crate) fn build_request_head<'e>(
    context: &RequestContext<'e>,
    request: &RequestView<'_>,
    attempt: &AttemptHead<'_>,
) -> Result<UpstreamRequestHead<'e>, InvalidHeaderValue> {
    let mut headers = copy_end_to_end_headers(&request.head.headers);
    // An invalid framing was rejected before.
    let framing = request.head.framing.unwrap_or(BodyFraming::Unstated);
    if let BodyFraming::Length(length) = framing {
        // A backend could read `010` as an octal number.
        headers.insert_number(header::CONTENT_LENGTH, length);
    }
    let framing = set_hop_headers(context, request, framing, attempt.has_body, &mut headers);
    set_host(context, attempt.endpoint, &mut headers)?;
    if context.is_inbound() {
        set_forwarded_headers(&mut headers, request, context.request_target);
    }
    headers.append(header::VIA, if request.is_http2 { VIA_HTTP2 } else { VIA });
    headers.insert(REQUEST_ID, context.request_id);
    headers.insert_number(ATTEMPT, attempt.number.into());
    set_time_left(attempt.time_left, &mut headers);
    if is_warm_up_weighted(context, attempt.endpoint) {
        headers.insert(WEIGHED, "1");
    }
    let filters = &context.route.spec.filters;
    apply_modifier(&mut headers, &filters.request_headers);
    let path = filters
        .path_rewrite
        .as_ref()
        .map(|rewrite| routing::rewrite_path(context.request_target, context.rule, rewrite));
    Ok(UpstreamRequestHead {
        method: request.head.method.clone(),
        path: path.map_or(
            Cow::Borrowed(context.request_target.path_and_query.as_str()),
            Cow::Owned,
        ),
        headers,
        framing,
        is_secure: context.destination.backend.spec.tls.is_some(),
    })
}

/// Sets the fields of this hop: upgrade, body framing and trailers. Returns the framing.
fn set_hop_headers(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    framing: BodyFraming,
    has_body: bool,
    headers: &mut Headers,
) -> BodyFraming {
    let accepts_trailers = lists_token(&request.head.headers, &header::TE, "trailers");
    if accepts_trailers {
        // The only connection-specific field that HTTP/2 permits (RFC 9113 section 8.2.2), and
        // gRPC requires it.
        headers.insert(header::TE, TRAILERS);
    }
    if context.is_backend_http2() {
        headers.remove(header::TRANSFER_ENCODING);
        return framing;
    }
    if let Some(protocol) = request.requested_upgrade() {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol);
    }
    if accepts_trailers {
        headers.append(header::CONNECTION, TE);
    }
    if request.is_http2 {
        merge_cookies(headers);
        if has_body && framing == BodyFraming::Unstated {
            headers.insert(header::TRANSFER_ENCODING, CHUNKED);
            return BodyFraming::Chunked;
        }
    }
    framing
}

/// Sets the host: rewritten by a filter, requested by the client, or else that of the endpoint.
fn set_host(
    context: &RequestContext<'_>,
    endpoint: &EndpointState,
    headers: &mut Headers,
) -> Result<(), InvalidHeaderValue> {
    let host = context
        .route
        .spec
        .filters
        .host_rewrite
        .as_deref()
        .unwrap_or(&context.request_target.authority);
    let host = if host.is_empty() {
        endpoint.authority()
    } else {
        host
    };
    if headers.get(header::HOST) != Some(host.as_bytes()) {
        headers.insert(header::HOST, HeaderValue::from_str(host)?);
    }
    Ok(())
}

/// Sets the deadline headers that the backend receives.
///
/// The time for the response head is in milliseconds and at least 1. Without such a deadline,
/// the client's header is removed.
fn set_time_left(time_left: TimeLeft, headers: &mut Headers) {
    match time_left.response_head {
        Some(left) => {
            let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            headers.insert_number(DEADLINE, millis.max(1));
        }
        None => headers.remove(DEADLINE),
    }
    if let Some(left) = time_left.call {
        headers.insert(GRPC_TIMEOUT, format_grpc_timeout(left));
    }
}

/// Returns whether the load balancer already limits the endpoint to the share of its own
/// warm-up.
///
/// The endpoint then does not reject the request because of its warm-up. The result is `false`
/// if the policy configures a warm-up, the balancer hashes, or no other endpoint can take the
/// rest.
fn is_warm_up_weighted(context: &RequestContext<'_>, endpoint: &EndpointState) -> bool {
    let backend = &context.destination.backend;
    let uses_endpoint_weights = backend.spec.warm_up.is_none()
        && !matches!(
            backend.spec.load_balancer,
            LoadBalancerSpec::ConsistentHash { .. }
        );
    endpoint.has_own_warm_up() && uses_endpoint_weights && backend.endpoints.len() > 1
}

/// Joins several cookie fields into one.
///
/// HTTP/2 may send each cookie in its own field, but HTTP/1 requires a single field (RFC 9113
/// section 8.2.3).
fn merge_cookies(headers: &mut Headers) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).collect();
    if cookies.len() > 1 {
        let joined = cookies.join(&b"; "[..]);
        headers.insert(header::COOKIE, joined);
    }
}

fn set_forwarded_headers(headers: &mut Headers, request: &RequestView<'_>, target: &RequestTarget) {
    let client = request.identity.address_value.as_bytes();
    if headers.contains_key(FORWARDED_FOR) {
        let hops = headers.get_all(FORWARDED_FOR);
        let hops = hops.filter(|hops| as_text(hops).is_some());
        let chain: Vec<&[u8]> = hops.chain([client]).collect();
        let chain = chain.join(&b", "[..]);
        headers.insert(FORWARDED_FOR, chain);
    } else {
        headers.append(FORWARDED_FOR, client);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        let is_secure = request.identity.is_secure;
        headers.append(FORWARDED_PROTO, if is_secure { "https" } else { "http" });
    }
    // The authority was checked when the target was parsed, so it is a valid value.
    if !headers.contains_key(FORWARDED_HOST) && !target.authority.is_empty() {
        headers.append(FORWARDED_HOST, &target.authority);
    }
}

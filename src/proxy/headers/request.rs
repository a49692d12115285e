//! Builds the head of a request to a backend.
//!
//! Fields are changed in a plain `HeaderMap`, and pingora's head is built from it at the end.
//! The setters of pingora's head parse every name again. They also maintain a second map with
//! the letter case of the names, which has no meaning (RFC 9110 section 5.1).
//!
//! The module does not send the head or know the framing of the connection.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderValue,
    header::{self, Entry},
};

use crate::{
    policy::snapshot::LoadBalancerSpec,
    proxy::{
        headers::{
            CHUNKED, UPGRADE, VIA, VIA_HTTP2,
            hop_by_hop::{
                apply_modifier, copy_end_to_end_headers, invalid_header_value, parse_header_value,
            },
        },
        request::{
            authority::RequestTarget,
            context::RequestContext,
            deadline::{TimeLeft, format_grpc_timeout},
            routing,
            view::RequestView,
        },
        upstream::request_head::RequestHead,
        wire::{
            framing_fields,
            header_names::{
                ATTEMPT, DEADLINE, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, GRPC_TIMEOUT,
                REQUEST_ID, WEIGHED,
            },
            list_field::lists_token,
        },
    },
    state::topology::endpoint::EndpointState,
};

const TE: HeaderValue = HeaderValue::from_static("te");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

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
/// If a rewritten host or an upgrade token is no valid header value.
pub(crate) fn build_request_head<'e>(
    context: &RequestContext<'e>,
    request: &RequestView<'_>,
    attempt: &AttemptHead<'_>,
) -> pingora::Result<RequestHead<'e>> {
    let mut headers = copy_end_to_end_headers(&request.head.headers);
    // A backend could read `010` as an octal number.
    if let Ok(Some(length)) = framing_fields::content_length(&headers) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    set_hop_headers(context, request, attempt.has_body, &mut headers)?;
    set_host(context, attempt.endpoint, &mut headers)?;
    if context.is_inbound() {
        set_forwarded_headers(&mut headers, request, context.request_target)?;
    }
    headers.append(header::VIA, if request.is_http2 { VIA_HTTP2 } else { VIA });
    headers.insert(REQUEST_ID, context.request_id.clone());
    headers.insert(ATTEMPT, attempt.number.into());
    set_time_left(attempt.time_left, &mut headers)?;
    if is_warm_up_weighted(context, attempt.endpoint) {
        headers.insert(WEIGHED, HeaderValue::from_static("1"));
    }
    let filters = &context.route.spec.filters;
    apply_modifier(&mut headers, &filters.request_headers);
    let path = filters
        .path_rewrite
        .as_ref()
        .map(|rewrite| routing::rewrite_path(context.request_target, context.rule, rewrite));
    Ok(RequestHead {
        method: request.head.method.clone(),
        uri: request.head.uri.clone(),
        path: path.map_or(
            Cow::Borrowed(context.request_target.path_and_query.as_str()),
            Cow::Owned,
        ),
        headers,
        is_secure: context.destination.backend.spec.tls.is_some(),
    })
}

/// Sets the fields of this hop: upgrade, body framing and trailers.
fn set_hop_headers(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    has_body: bool,
    headers: &mut HeaderMap,
) -> pingora::Result<()> {
    let accepts_trailers = lists_token(&request.head.headers, &header::TE, "trailers");
    if accepts_trailers {
        // The only connection-specific field that HTTP/2 permits (RFC 9113 section 8.2.2), and
        // gRPC requires it.
        headers.insert(header::TE, TRAILERS);
    }
    if context.is_backend_http2() {
        headers.remove(header::TRANSFER_ENCODING);
        return Ok(());
    }
    if let Some(protocol) = request.requested_upgrade() {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, parse_header_value(protocol)?);
    }
    if accepts_trailers {
        headers.append(header::CONNECTION, TE);
    }
    if request.is_http2 {
        merge_cookies(headers)?;
        if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::TRANSFER_ENCODING, CHUNKED);
        }
    }
    Ok(())
}

/// Sets the host: rewritten by a filter, requested by the client, or else that of the endpoint.
fn set_host(
    context: &RequestContext<'_>,
    endpoint: &EndpointState,
    headers: &mut HeaderMap,
) -> pingora::Result<()> {
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
    if headers
        .get(header::HOST)
        .is_none_or(|current| current.as_bytes() != host.as_bytes())
    {
        headers.insert(header::HOST, parse_header_value(host)?);
    }
    Ok(())
}

/// Sets the deadline headers that the backend receives.
///
/// The time for the response head is in milliseconds and at least 1. Without such a deadline,
/// the client's header is removed.
fn set_time_left(time_left: TimeLeft, headers: &mut HeaderMap) -> pingora::Result<()> {
    match time_left.response_head {
        Some(left) => headers.insert(
            DEADLINE,
            HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)),
        ),
        None => headers.remove(DEADLINE),
    };
    if let Some(left) = time_left.call {
        headers.insert(
            GRPC_TIMEOUT,
            parse_header_value(&format_grpc_timeout(left))?,
        );
    }
    Ok(())
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
fn merge_cookies(headers: &mut HeaderMap) -> pingora::Result<()> {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
            .map_err(|_| invalid_header_value())?;
        headers.insert(header::COOKIE, joined);
    }
    Ok(())
}

fn set_forwarded_headers(
    headers: &mut HeaderMap,
    request: &RequestView<'_>,
    target: &RequestTarget,
) -> pingora::Result<()> {
    let client = &request.identity.address_value;
    let chain = if headers.contains_key(FORWARDED_FOR) {
        let hops = headers.get_all(FORWARDED_FOR).iter();
        let mut chain: Vec<&[u8]> = hops
            .filter(|hops| hops.to_str().is_ok())
            .map(HeaderValue::as_bytes)
            .collect();
        chain.push(client.as_bytes());
        HeaderValue::from_bytes(&chain.join(&b", "[..])).map_err(|_| invalid_header_value())?
    } else {
        client.clone()
    };
    headers.insert(FORWARDED_FOR, chain);
    if let Entry::Vacant(vacant) = headers.entry(FORWARDED_PROTO) {
        vacant.insert(HeaderValue::from_static(if request.identity.is_secure {
            "https"
        } else {
            "http"
        }));
    }
    if let Entry::Vacant(vacant) = headers.entry(FORWARDED_HOST)
        && !target.authority.is_empty()
    {
        let host = request.head.headers.get(header::HOST);
        let host = host.filter(|host| host.as_bytes() == target.authority.as_bytes());
        vacant.insert(match host {
            Some(host) => host.clone(),
            None => parse_header_value(&target.authority)?,
        });
    }
    Ok(())
}

//! The heads of messages on their way: what is taken out, and what is put in.
//!
//! Fields that are about one connection end here (RFC 9110 section 7.6.1): those of the list, and those that `connection`
//! nominates. `transfer-encoding` stays, because pingora frames the next hop by it. Trailers do not pass pingora's HTTP/1
//! sessions, so they are not announced either.

use std::{borrow::Cow, fmt::Write, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{self, Entry},
    uri::Scheme,
};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::{
    policy::{
        document::Direction,
        snapshot::{HeaderModifierSpec, LoadBalancerSpec},
    },
    proxy::{
        asked::RequestView,
        authority::RequestTarget,
        client::Client,
        deadline::{TimeLeft, format_grpc_timeout},
        rate_limits::{self, RateLimitOutcome},
        rejection::PSEUDONYM,
        serve::RequestContext,
        signs,
        source::FORWARDED_FOR,
    },
    state::topology::endpoint::EndpointState,
};

/// Fields about one connection, besides `transfer-encoding`, and about one hop.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    signs::DRAINING,
    signs::STARTED_AT,
    signs::WEIGHED,
];

/// How many fields we add at most, besides those of filters.
const MAX_ADDED_HEADERS: usize = 12;

const VIA: HeaderValue = HeaderValue::from_static("1.1 outrigger");
const VIA_HTTP2: HeaderValue = HeaderValue::from_static("2 outrigger");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Which attempt of its sender's a request is.
pub(super) const ATTEMPT: HeaderName = HeaderName::from_static("x-outrigger-attempt");
/// How long a sender waits for the head of the answer, in milliseconds.
pub(super) const DEADLINE: HeaderName = HeaderName::from_static("x-outrigger-deadline-ms");
/// How long a client of gRPC waits.
pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Says that a sidecar made an answer, and why.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-outrigger-reason");

/// A request that passed so many proxies of this name goes in circles.
const MAX_HOPS: usize = 16;

/// The request's id: that of the client if it has one, else a new one.
pub(super) fn request_id(client: &Client) -> HeaderValue {
    let client_id = client
        .head()
        .headers
        .get(REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= 128 && id.to_str().is_ok());
    client_id.cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", fastrand::u128(..));
        HeaderValue::from_maybe_shared(Bytes::from(id))
            .unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

/// Whether the request has passed this kind of proxy too often.
pub(super) fn is_looping(client: &Client) -> bool {
    let hops = client
        .head()
        .headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok());
    hops.flat_map(|value| value.split(','))
        .filter(|hop| hop.trim().ends_with(PSEUDONYM))
        .count()
        >= MAX_HOPS
}

/// What the client wants to speak instead of HTTP, if it asks properly. `h2c` is not passed on: the answer would be read by
/// nobody who understands it.
pub(super) fn requested_upgrade<'a>(request: &RequestView<'a>) -> Option<&'a str> {
    let head = request.head;
    if head.version != Version::HTTP_11 || !has_connection_option(&head.headers, "upgrade") {
        return None;
    }
    let protocol = head
        .headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    protocol.filter(|protocol| {
        !protocol.is_empty()
            && !protocol
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case("h2c"))
    })
}

/// The head of an attempt.
///
/// Fields are changed in the bare map, and the head is made of it at the end: pingora's own setters parse every name anew and
/// keep a second map with the case of the names, which matters to nobody (RFC 9110 section 5.1).
pub(super) fn build_request_head<'e>(
    context: &'e RequestContext<'_>,
    request: &RequestView<'_>,
    endpoint: &EndpointState,
    attempt: u32,
    has_body: bool,
    time_left: TimeLeft,
) -> pingora::Result<RequestHead<'e>> {
    let mut headers = copy_end_to_end_headers(&request.head.headers);
    let is_http2 = context.is_backend_http2();
    if let Some(protocol) = requested_upgrade(request).filter(|_| !is_http2) {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, parse_header_value(protocol)?);
    }
    if is_http2 {
        headers.remove(header::TRANSFER_ENCODING);
        // The one field about a connection that HTTP/2 knows (RFC 9113 section 8.2.2); gRPC asks for it.
        if accepts_trailers(&request.head.headers) {
            headers.insert(header::TE, TRAILERS);
        }
    } else if request.is_http2 {
        merge_cookies(&mut headers)?;
        if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::TRANSFER_ENCODING, CHUNKED);
        }
    }
    let filters = &context.route.spec.filters;
    let host = filters
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
    if context.route.spec.direction == Direction::Inbound {
        set_forwarded_headers(&mut headers, request, context.request_target)?;
    }
    headers.append(header::VIA, if request.is_http2 { VIA_HTTP2 } else { VIA });
    headers.insert(REQUEST_ID, context.request_id.clone());
    headers.insert(ATTEMPT, attempt.into());
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
    if is_warm_up_weighted(context, endpoint) {
        headers.insert(signs::WEIGHED, HeaderValue::from_static("1"));
    }
    apply_modifier(&mut headers, &filters.request_headers);
    let path = filters
        .path_rewrite
        .as_ref()
        .map(|rewrite| super::routing::rewrite_path(context.request_target, context.rule, rewrite));
    let path = path.map_or(
        Cow::Borrowed(context.request_target.path_and_query.as_str()),
        Cow::Owned,
    );
    let is_secure = context.destination.backend.spec.tls.is_some();
    Ok(RequestHead {
        method: request.head.method.clone(),
        uri: request.head.uri.clone(),
        path,
        headers,
        is_secure,
    })
}

/// Whether the endpoint gets no more than it wants while it warms up: by its own curve, and beside others that get the rest.
fn is_warm_up_weighted(context: &RequestContext<'_>, endpoint: &EndpointState) -> bool {
    let backend = &context.destination.backend;
    let uses_endpoint_weights = backend.spec.warm_up.is_none()
        && !matches!(
            backend.spec.load_balancer,
            LoadBalancerSpec::ConsistentHash { .. }
        );
    endpoint.has_own_warm_up() && uses_endpoint_weights && backend.endpoints.len() > 1
}

/// The head of an attempt, before it is put into one framing or the other.
pub(super) struct RequestHead<'e> {
    method: Method,
    /// As the client wrote it.
    uri: Uri,
    /// Path and query, as they are sent.
    path: Cow<'e, str>,
    headers: HeaderMap,
    is_secure: bool,
}

impl RequestHead<'_> {
    /// For HTTP/1.
    pub(super) fn into_http1(self) -> pingora::Result<Box<RequestHeader>> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method;
        parts.uri = self.uri;
        parts.headers = self.headers;
        let mut head = Box::new(RequestHeader::from(parts));
        if head.raw_path() != self.path.as_bytes() {
            head.set_raw_path(self.path.as_bytes())?;
        }
        Ok(head)
    }

    /// For HTTP/2: the host is a part of the target.
    pub(super) fn into_http2(mut self) -> pingora::Result<http::Request<()>> {
        let authority = self
            .headers
            .remove(header::HOST)
            .ok_or_else(invalid_header_value)?;
        let scheme = if self.is_secure {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let path = if self.path == "*" { "/" } else { &*self.path };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority.as_bytes())
            .path_and_query(path)
            .build()
            .map_err(|_| invalid_header_value())?;
        let mut request = http::Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

/// Whether the sender says that it reads trailers.
fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// HTTP/2 may send each cookie by itself; HTTP/1 wants one line (RFC 9113 section 8.2.3).
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

/// The head of the answer, as the client gets it.
pub(super) fn build_response_head(
    context: &RequestContext<'_>,
    client: &Client,
    response_head: &ResponseHeader,
    is_upgrade: bool,
    rate_limits: Option<&RateLimitOutcome>,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut headers = copy_end_to_end_headers(&response_head.headers);
    if let Some(protocol) = response_head
        .headers
        .get(header::UPGRADE)
        .filter(|_| is_upgrade)
    {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol.clone());
    } else if !response_head.status.is_informational() {
        set_body_framing(&mut headers, response_head.status, client);
    }
    merge_content_lengths(&mut headers)?;
    headers.append(
        header::VIA,
        if context.is_backend_http2() {
            VIA_HTTP2
        } else {
            VIA
        },
    );
    for (name, value) in rate_limits
        .into_iter()
        .flat_map(|rate_limits| rate_limits::limit_headers(context.route, rate_limits))
    {
        headers.append(name, value);
    }
    if context.route.spec.direction == Direction::Inbound {
        // Only a sidecar says so, and behind an inbound route there is none.
        headers.remove(REASON);
        for (name, value) in signs::current_headers(context.worker, context.active_policy) {
            headers.insert(name, value);
        }
    }
    apply_modifier(&mut headers, &context.route.spec.filters.response_headers);
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = response_head.status;
    parts.headers = headers;
    let mut head = Box::new(ResponseHeader::from(parts));
    if !client.is_http2() {
        head.set_reason_phrase(response_head.get_reason_phrase())?;
    }
    Ok(head)
}

/// A length that was given several times, equal each time, is passed on once (RFC 9110 section 8.6).
fn merge_content_lengths(headers: &mut HeaderMap) -> pingora::Result<()> {
    let lengths = headers.get_all(header::CONTENT_LENGTH);
    let is_repeated = lengths.iter().count() > 1
        || lengths
            .iter()
            .any(|length| length.as_bytes().contains(&b','));
    if is_repeated {
        let first = lengths
            .iter()
            .next()
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.split(',').next());
        let length = parse_header_value(first.unwrap_or_default().trim())?;
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// Sees to it that the client can tell where the body ends.
fn set_body_framing(headers: &mut HeaderMap, status: StatusCode, client: &Client) {
    if client.is_http2() {
        headers.remove(header::TRANSFER_ENCODING);
        return;
    }
    let has_no_body = status == 204 || status == 304 || client.head().method == Method::HEAD;
    if client.head().version == Version::HTTP_10 {
        // It knows no chunks; the end of the connection is the end of the body.
        headers.remove(header::TRANSFER_ENCODING);
    } else if !has_no_body
        && !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
    {
        headers.insert(header::TRANSFER_ENCODING, CHUNKED);
    }
}

fn set_forwarded_headers(
    headers: &mut HeaderMap,
    request: &RequestView<'_>,
    target: &RequestTarget,
) -> pingora::Result<()> {
    let mut chain = String::with_capacity(48);
    for hops in headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|hops| hops.to_str().ok())
    {
        chain.push_str(hops);
        chain.push_str(", ");
    }
    // Writing to a string cannot fail.
    _ = write!(chain, "{}", request.identity.address.to_canonical());
    headers.insert(
        FORWARDED_FOR,
        HeaderValue::from_maybe_shared(Bytes::from(chain)).map_err(|_| invalid_header_value())?,
    );
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
        vacant.insert(parse_header_value(&target.authority)?);
    }
    Ok(())
}

/// A copy of the fields that do not end at this hop, with room for ours.
pub(super) fn copy_end_to_end_headers(headers: &HeaderMap) -> HeaderMap {
    let mut nominated: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().unwrap_or_default().split(',').map(str::trim);
        // Framing and the host are not a client's to take out.
        let protected_options = [
            "",
            "close",
            "keep-alive",
            "upgrade",
            "transfer-encoding",
            "content-length",
            "host",
        ];
        nominated.extend(
            names
                .filter(|name| {
                    !protected_options
                        .iter()
                        .any(|protected_options| name.eq_ignore_ascii_case(protected_options))
                })
                .filter_map(|name| name.parse::<HeaderName>().ok()),
        );
    }
    let mut copied = HeaderMap::with_capacity(headers.len() + MAX_ADDED_HEADERS);
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name) && !nominated.contains(name))
    {
        copied.append(name.clone(), value.clone());
    }
    copied
}

fn has_connection_option(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|name| name.trim().eq_ignore_ascii_case(option))
    })
}

/// Changes fields as a filter says.
pub(super) fn apply_modifier(headers: &mut HeaderMap, modifier: &HeaderModifierSpec) {
    for name in &modifier.remove {
        headers.remove(name);
    }
    for (name, value) in &modifier.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name.clone(), value.clone());
    }
}

fn parse_header_value(text: &str) -> pingora::Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| invalid_header_value())
}

fn invalid_header_value() -> pingora::BError {
    pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "a value of a header")
}

/// How long a backend says that it keeps an idle connection.
pub(super) fn parse_keep_alive_timeout(response_head: &ResponseHeader) -> Option<Duration> {
    let value: &HeaderValue = response_head.headers.get("keep-alive")?;
    let seconds = value
        .to_str()
        .ok()?
        .split(',')
        .find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

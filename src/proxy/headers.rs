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

use super::{
    asked::Asked,
    authority::Target,
    client::Client,
    deadline::{TimeLeft, write_grpc_timeout},
    rate_limits::{self, Limits},
    rejection::PSEUDONYM,
    serve::Exchange,
    signs,
    source::FORWARDED_FOR,
};
use crate::{
    policy::{
        document::Direction,
        snapshot::{Balancer, HeaderEdits},
    },
    state::endpoint::EndpointState,
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
const OWN_FIELDS: usize = 12;

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
    let given = client
        .head()
        .headers
        .get(REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= 128 && id.to_str().is_ok());
    given.cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", fastrand::u128(..));
        HeaderValue::from_maybe_shared(Bytes::from(id))
            .unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

/// Whether the request has passed this kind of proxy too often.
pub(super) fn goes_in_circles(client: &Client) -> bool {
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
pub(super) fn wanted_upgrade<'a>(asked: &Asked<'a>) -> Option<&'a str> {
    let head = asked.head;
    if head.version != Version::HTTP_11 || !nominates(&head.headers, "upgrade") {
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
pub(super) fn upstream<'e>(
    exchange: &'e Exchange<'_>,
    asked: &Asked<'_>,
    endpoint: &EndpointState,
    attempt: u32,
    has_body: bool,
    time_left: TimeLeft,
) -> pingora::Result<RequestHead<'e>> {
    let mut headers = passed_on(&asked.head.headers);
    let is_http2 = exchange.is_to_http2();
    if let Some(protocol) = wanted_upgrade(asked).filter(|_| !is_http2) {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, value(protocol)?);
    }
    if is_http2 {
        headers.remove(header::TRANSFER_ENCODING);
        // The one field about a connection that HTTP/2 knows (RFC 9113 section 8.2.2); gRPC asks for it.
        if takes_trailers(&asked.head.headers) {
            headers.insert(header::TE, TRAILERS);
        }
    } else if asked.is_http2 {
        one_cookie(&mut headers)?;
        if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::TRANSFER_ENCODING, CHUNKED);
        }
    }
    let filters = &exchange.route.spec.filters;
    let host = filters
        .host
        .as_deref()
        .unwrap_or(&exchange.target.authority);
    let host = if host.is_empty() {
        endpoint.authority()
    } else {
        host
    };
    if headers
        .get(header::HOST)
        .is_none_or(|current| current.as_bytes() != host.as_bytes())
    {
        headers.insert(header::HOST, value(host)?);
    }
    if exchange.route.spec.direction == Direction::Inbound {
        forwarded(&mut headers, asked, exchange.target)?;
    }
    headers.append(header::VIA, if asked.is_http2 { VIA_HTTP2 } else { VIA });
    headers.insert(REQUEST_ID, exchange.request_id.clone());
    headers.insert(ATTEMPT, attempt.into());
    match time_left.until_head {
        Some(left) => headers.insert(
            DEADLINE,
            HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)),
        ),
        None => headers.remove(DEADLINE),
    };
    if let Some(left) = time_left.of_call {
        headers.insert(GRPC_TIMEOUT, value(&write_grpc_timeout(left))?);
    }
    if is_weighed(exchange, endpoint) {
        headers.insert(signs::WEIGHED, HeaderValue::from_static("1"));
    }
    edit(&mut headers, &filters.request_headers);
    let path = filters
        .path
        .as_ref()
        .map(|rewrite| super::routing::rewritten(exchange.target, exchange.rule, rewrite));
    let path = path.map_or(
        Cow::Borrowed(exchange.target.path_and_query.as_str()),
        Cow::Owned,
    );
    let is_secure = exchange.destination.backend.spec.tls.is_some();
    Ok(RequestHead {
        method: asked.head.method.clone(),
        uri: asked.head.uri.clone(),
        path,
        headers,
        is_secure,
    })
}

/// Whether the endpoint gets no more than it wants while it warms up: by its own curve, and beside others that get the rest.
fn is_weighed(exchange: &Exchange<'_>, endpoint: &EndpointState) -> bool {
    let backend = &exchange.destination.backend;
    let is_weighing = backend.spec.warm_up.is_none()
        && !matches!(backend.spec.balancer, Balancer::ConsistentHash { .. });
    endpoint.has_curve() && is_weighing && backend.endpoints.len() > 1
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
    pub(super) fn http1(self) -> pingora::Result<Box<RequestHeader>> {
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
    pub(super) fn http2(mut self) -> pingora::Result<http::Request<()>> {
        let authority = self.headers.remove(header::HOST).ok_or_else(not_a_value)?;
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
            .map_err(|_| not_a_value())?;
        let mut request = http::Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

/// Whether the sender says that it reads trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// HTTP/2 may send each cookie by itself; HTTP/1 wants one line (RFC 9113 section 8.2.3).
fn one_cookie(headers: &mut HeaderMap) -> pingora::Result<()> {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        let joined =
            HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_err(|_| not_a_value())?;
        headers.insert(header::COOKIE, joined);
    }
    Ok(())
}

/// The head of the answer, as the client gets it.
pub(super) fn downstream(
    exchange: &Exchange<'_>,
    client: &Client,
    answer: &ResponseHeader,
    is_upgrade: bool,
    limits: Option<&Limits>,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut headers = passed_on(&answer.headers);
    if let Some(protocol) = answer.headers.get(header::UPGRADE).filter(|_| is_upgrade) {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol.clone());
    } else if !answer.status.is_informational() {
        frame(&mut headers, answer.status, client);
    }
    one_length(&mut headers)?;
    headers.append(
        header::VIA,
        if exchange.is_to_http2() {
            VIA_HTTP2
        } else {
            VIA
        },
    );
    for (name, value) in limits
        .into_iter()
        .flat_map(|limits| rate_limits::headers(exchange.route, limits))
    {
        headers.append(name, value);
    }
    if exchange.route.spec.direction == Direction::Inbound {
        // Only a sidecar says so, and behind an inbound route there is none.
        headers.remove(REASON);
        for (name, value) in signs::of(exchange.worker, exchange.live) {
            headers.insert(name, value);
        }
    }
    edit(&mut headers, &exchange.route.spec.filters.response_headers);
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = answer.status;
    parts.headers = headers;
    let mut head = Box::new(ResponseHeader::from(parts));
    if !client.is_http2() {
        head.set_reason_phrase(answer.get_reason_phrase())?;
    }
    Ok(head)
}

/// A length that was given several times, equal each time, is passed on once (RFC 9110 section 8.6).
fn one_length(headers: &mut HeaderMap) -> pingora::Result<()> {
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
        let length = value(first.unwrap_or_default().trim())?;
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// Sees to it that the client can tell where the body ends.
fn frame(headers: &mut HeaderMap, status: StatusCode, client: &Client) {
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

fn forwarded(headers: &mut HeaderMap, asked: &Asked<'_>, target: &Target) -> pingora::Result<()> {
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
    _ = write!(chain, "{}", asked.peer.address.to_canonical());
    headers.insert(
        FORWARDED_FOR,
        HeaderValue::from_maybe_shared(Bytes::from(chain)).map_err(|_| not_a_value())?,
    );
    if let Entry::Vacant(vacant) = headers.entry(FORWARDED_PROTO) {
        vacant.insert(HeaderValue::from_static(if asked.peer.is_secure {
            "https"
        } else {
            "http"
        }));
    }
    if let Entry::Vacant(vacant) = headers.entry(FORWARDED_HOST)
        && !target.authority.is_empty()
    {
        vacant.insert(value(&target.authority)?);
    }
    Ok(())
}

/// A copy of the fields that do not end at this hop, with room for ours.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut nominated: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().unwrap_or_default().split(',').map(str::trim);
        // Framing and the host are not a client's to take out.
        let kept = [
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
                .filter(|name| !kept.iter().any(|kept| name.eq_ignore_ascii_case(kept)))
                .filter_map(|name| name.parse::<HeaderName>().ok()),
        );
    }
    let mut copy = HeaderMap::with_capacity(headers.len() + OWN_FIELDS);
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name) && !nominated.contains(name))
    {
        copy.append(name.clone(), value.clone());
    }
    copy
}

fn nominates(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|name| name.trim().eq_ignore_ascii_case(option))
    })
}

/// Changes fields as a filter says.
pub(super) fn edit(headers: &mut HeaderMap, edits: &HeaderEdits) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, value) in &edits.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &edits.add {
        headers.append(name.clone(), value.clone());
    }
}

fn value(text: &str) -> pingora::Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| not_a_value())
}

fn not_a_value() -> pingora::BError {
    pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "a value of a header")
}

/// How long a backend says that it keeps an idle connection.
pub(super) fn keep_alive_hint(answer: &ResponseHeader) -> Option<Duration> {
    let value: &HeaderValue = answer.headers.get("keep-alive")?;
    let seconds = value
        .to_str()
        .ok()?
        .split(',')
        .find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

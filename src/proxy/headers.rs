//! The heads of messages on their way: what is taken out, and what is put in.
//!
//! Fields that are about one connection end here (RFC 9110 section 7.6.1): those of the list, and those that `connection`
//! nominates. `transfer-encoding` stays, because pingora frames the next hop by it. Trailers do not pass pingora's HTTP/1
//! sessions, so they are not announced either.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use super::{authority::Target, client::Client, rejection::PSEUDONYM, serve::Exchange};
use crate::policy::{document::Direction, snapshot::HeaderEdits};

/// Fields about one connection, besides `upgrade` and `transfer-encoding`.
const HOP_BY_HOP: [HeaderName; 5] = [header::CONNECTION, HeaderName::from_static("proxy-connection"), HeaderName::from_static("keep-alive"), header::TE, header::TRAILER];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ATTEMPT: HeaderName = HeaderName::from_static("x-outrigger-attempt");
/// Says to callers that this instance is leaving.
pub(super) const DRAINING: HeaderName = HeaderName::from_static("x-outrigger-draining");
const REASON: HeaderName = HeaderName::from_static("x-outrigger-reason");

/// A request that passed so many proxies of this name goes in circles.
const MAX_HOPS: usize = 16;

/// The request's id: that of the client if it has one, else a new one.
pub(super) fn request_id(client: &Client) -> String {
    match client.text(&REQUEST_ID).filter(|id| !id.is_empty() && id.len() <= 128) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", fastrand::u128(..)),
    }
}

/// Whether the request has passed this kind of proxy too often.
pub(super) fn goes_in_circles(client: &Client) -> bool {
    let hops = client.head().headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    hops.flat_map(|value| value.split(',')).filter(|hop| hop.trim().ends_with(PSEUDONYM)).count() >= MAX_HOPS
}

/// What the client wants to speak instead of HTTP, if it asks properly. `h2c` is not passed on: the answer would be read by
/// nobody who understands it.
pub(super) fn wanted_upgrade(client: &Client) -> Option<&str> {
    let head = client.head();
    if head.version != Version::HTTP_11 || !nominates(&head.headers, "upgrade") {
        return None;
    }
    client.text(&header::UPGRADE).filter(|protocol| !protocol.is_empty() && !protocol.split(',').any(|one| one.trim().eq_ignore_ascii_case("h2c")))
}

/// The head of an attempt.
pub(super) fn upstream(exchange: &Exchange<'_>, client: &Client, endpoint: &str, attempt: u32) -> pingora::Result<Box<RequestHeader>> {
    let mut head = Box::new(client.head().clone());
    let upgrade = wanted_upgrade(client).map(str::to_owned);
    head.set_version(Version::HTTP_11);
    for name in to_remove(&head.headers) {
        head.remove_header(&name);
    }
    match upgrade {
        Some(protocol) => {
            head.insert_header(header::CONNECTION, "upgrade")?;
            head.insert_header(header::UPGRADE, protocol)?;
        }
        None => drop(head.remove_header(&header::UPGRADE)),
    }
    target(exchange, &mut head, endpoint)?;
    if exchange.route.spec.direction == Direction::Inbound {
        forwarded(&mut head, client.peer, exchange.target)?;
    }
    head.append_header(header::VIA, concat!("1.1 ", "outrigger"))?;
    head.insert_header(REQUEST_ID, exchange.request_id)?;
    head.insert_header(ATTEMPT, attempt)?;
    edit_request(&mut head, &exchange.route.spec.filters.request_headers)?;
    Ok(head)
}

/// The head of the answer, as the client gets it.
pub(super) fn downstream(exchange: &Exchange<'_>, client: &Client, answer: &ResponseHeader, is_upgrade: bool) -> pingora::Result<Box<ResponseHeader>> {
    let mut head = Box::new(answer.clone());
    let upgrade = if is_upgrade { answer.headers.get(header::UPGRADE).cloned() } else { None };
    for name in to_remove(&head.headers) {
        head.remove_header(&name);
    }
    head.remove_header(&header::UPGRADE);
    if let Some(protocol) = upgrade {
        head.insert_header(header::CONNECTION, "upgrade")?;
        head.insert_header(header::UPGRADE, protocol)?;
    } else if !head.status.is_informational() {
        frame(&mut head, client)?;
    }
    head.set_version(Version::HTTP_11);
    one_length(&mut head)?;
    head.append_header(header::VIA, concat!("1.1 ", "outrigger"))?;
    if exchange.is_draining_inbound() {
        head.insert_header(DRAINING, "1")?;
    }
    if exchange.route.spec.direction == Direction::Inbound {
        // Only a sidecar says so, and behind an inbound route there is none.
        head.remove_header(&REASON);
    }
    edit_response(&mut head, &exchange.route.spec.filters.response_headers)?;
    Ok(head)
}

/// A length that was given several times, equal each time, is passed on once (RFC 9110 section 8.6).
fn one_length(head: &mut ResponseHeader) -> pingora::Result<()> {
    let lengths = head.headers.get_all(header::CONTENT_LENGTH);
    let is_repeated = lengths.iter().count() > 1 || lengths.iter().any(|length| length.as_bytes().contains(&b','));
    let first = lengths.iter().next().and_then(|length| length.to_str().ok()).and_then(|length| length.split(',').next()).map(|length| length.trim().to_owned());
    match first.filter(|_| is_repeated) {
        Some(length) => head.insert_header(header::CONTENT_LENGTH, length),
        None => Ok(()),
    }
}

/// Sees to it that the client can tell where the body ends.
fn frame(head: &mut ResponseHeader, client: &Client) -> pingora::Result<()> {
    let has_no_body = head.status == 204 || head.status == 304 || client.head().method == http::Method::HEAD;
    if client.head().version == Version::HTTP_10 {
        // It knows no chunks; the end of the connection is the end of the body.
        head.remove_header(&header::TRANSFER_ENCODING);
    } else if !has_no_body && !head.headers.contains_key(header::CONTENT_LENGTH) && !head.headers.contains_key(header::TRANSFER_ENCODING) {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

fn target(exchange: &Exchange<'_>, head: &mut RequestHeader, endpoint: &str) -> pingora::Result<()> {
    let filters = &exchange.route.spec.filters;
    let path = filters.path.as_ref().map(|rewrite| super::routing::rewritten(exchange.target, exchange.rule, rewrite));
    let path = path.as_deref().unwrap_or(&exchange.target.path_and_query);
    if head.raw_path() != path.as_bytes() {
        head.set_raw_path(path.as_bytes())?;
    }
    let host = filters.host.as_deref().unwrap_or(&exchange.target.authority);
    let host = if host.is_empty() { endpoint } else { host };
    if head.headers.get(header::HOST).is_none_or(|current| current.as_bytes() != host.as_bytes()) {
        head.insert_header(header::HOST, host)?;
    }
    Ok(())
}

fn forwarded(head: &mut RequestHeader, peer: IpAddr, target: &Target) -> pingora::Result<()> {
    let peer = peer.to_canonical();
    let mut chain: String = head.headers.get_all(FORWARDED_FOR).iter().filter_map(|hops| hops.to_str().ok()).fold(String::new(), |chain, hops| chain + hops + ", ");
    chain += &peer.to_string();
    head.insert_header(FORWARDED_FOR, chain)?;
    if !head.headers.contains_key(FORWARDED_PROTO) {
        head.insert_header(FORWARDED_PROTO, "http")?;
    }
    if !head.headers.contains_key(FORWARDED_HOST) && !target.authority.is_empty() {
        head.insert_header(FORWARDED_HOST, target.authority.as_str())?;
    }
    Ok(())
}

/// The fields that end at this hop.
fn to_remove(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = HOP_BY_HOP.iter().filter(|name| headers.contains_key(*name)).cloned().collect();
    for value in headers.get_all(header::CONNECTION) {
        let nominated = value.to_str().unwrap_or_default().split(',').map(str::trim);
        // Framing and the host are not a client's to take out.
        let kept = ["", "close", "keep-alive", "upgrade", "transfer-encoding", "content-length", "host"];
        names.extend(nominated.filter(|name| !kept.iter().any(|kept| name.eq_ignore_ascii_case(kept))).filter_map(|name| name.parse::<HeaderName>().ok()));
    }
    names
}

fn nominates(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| value.to_str().unwrap_or_default().split(',').any(|name| name.trim().eq_ignore_ascii_case(option)))
}

fn edit_request(head: &mut RequestHeader, edits: &HeaderEdits) -> pingora::Result<()> {
    for name in &edits.remove {
        head.remove_header(name.as_str());
    }
    for (name, value) in &edits.set {
        head.insert_header(name.clone(), value.as_str())?;
    }
    for (name, value) in &edits.add {
        head.append_header(name.clone(), value.as_str())?;
    }
    Ok(())
}

fn edit_response(head: &mut ResponseHeader, edits: &HeaderEdits) -> pingora::Result<()> {
    for name in &edits.remove {
        head.remove_header(name.as_str());
    }
    for (name, value) in &edits.set {
        head.insert_header(name.clone(), value.as_str())?;
    }
    for (name, value) in &edits.add {
        head.append_header(name.clone(), value.as_str())?;
    }
    Ok(())
}

/// How long a backend says that it keeps an idle connection.
pub(super) fn keep_alive_hint(answer: &ResponseHeader) -> Option<std::time::Duration> {
    let value: &HeaderValue = answer.headers.get("keep-alive")?;
    let seconds = value.to_str().ok()?.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(std::time::Duration::from_secs)
}

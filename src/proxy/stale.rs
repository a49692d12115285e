//! Which answers may be kept and given again when the backend fails (RFC 9111, RFC 5861).
//!
//! The policy is the contract by which stale answers may be given at all (RFC 9111 section 4.2.4); what the app forbids stays forbidden.
//! What could be one person's is neither kept nor given: requests with `authorization` or `cookie` have to do with answers only that are said to
//! be public, and an answer that sets a cookie is not kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::http::ResponseHeader;

use super::{client::Client, headers, serve::Exchange};
use crate::{
    clock,
    policy::snapshot::StaleSpec,
    resilience::Mode,
    state::stale::{Kept, StaleState},
};

/// An answer on its way that will be kept if it comes to its end.
pub(super) struct Capture {
    state: Arc<StaleState>,
    address: String,
    kept: Kept,
    max: usize,
    length: usize,
}

impl Capture {
    /// Takes a piece; `false` if it has become too long.
    pub(super) fn push(&mut self, piece: &Bytes) -> bool {
        self.length += piece.len();
        self.kept.body.push(piece.clone());
        self.length <= self.max
    }

    /// It is complete.
    pub(super) fn keep(self) {
        self.state.keep(&self.address, self.kept);
    }
}

/// What there is to know about a request and what is kept.
fn section<'e>(exchange: &'e Exchange<'_>) -> Option<(&'e StaleSpec, &'e Arc<StaleState>)> {
    exchange.destination.policy.stale.as_ref().zip(exchange.destination.stale.as_ref())
}

/// The name under which an answer is kept.
fn address(exchange: &Exchange<'_>) -> String {
    let target = exchange.target;
    format!("{} {} {}", exchange.route.spec.name, target.authority, target.path_and_query)
}

/// Begins to keep an answer that may be, and forgets what it makes untrue.
pub(super) fn capture(exchange: &Exchange<'_>, client: &Client, answer: &ResponseHeader) -> Option<Capture> {
    let (spec, state) = section(exchange)?;
    let head = client.head();
    let address = address(exchange);
    let status = answer.status.as_u16();
    if head.method != Method::GET {
        // What has been changed is not what was kept (RFC 9111 section 4.4).
        if ![Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&head.method) && status < 400 {
            state.forget(&address);
        }
        return None;
    }
    let kept = kept(spec, &head.headers, answer, clock::now());
    if kept.is_none() && matches!(status, 200 | 404 | 410) {
        state.forget(&address);
    }
    Some(Capture { state: state.clone(), address, kept: kept?, max: spec.max_entry_bytes, length: 0 })
}

/// The answer that is given instead of a failure, and how old it is; in shadow mode it is only said that there is one.
pub(super) fn find(exchange: &Exchange<'_>, client: &Client) -> Option<(Arc<Kept>, Duration, Mode)> {
    let (spec, state) = section(exchange)?;
    let head = client.head();
    let wants_no_other = directives(&head.headers).any(|(name, _)| name == "no-cache" || name == "no-store");
    if ![Method::GET, Method::HEAD].contains(&head.method) || wants_no_other {
        return None;
    }
    let now = clock::now();
    let kept = state.find(&address(exchange), &head.headers, now).filter(|kept| kept.is_public || !is_personal(&head.headers))?;
    let age = now.saturating_duration_since(kept.at) + Duration::from_secs(kept.age);
    Some((kept, age, spec.mode))
}

/// What is kept of an answer to a GET, if it may be.
fn kept(spec: &StaleSpec, request: &HeaderMap, answer: &ResponseHeader, now: Instant) -> Option<Kept> {
    let fields = &answer.headers;
    let length: Option<usize> = fields.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()).and_then(|length| length.trim().parse().ok());
    if answer.status != 200 || length.is_some_and(|length| length > spec.max_entry_bytes) || fields.contains_key(header::SET_COOKIE) || request.contains_key(header::RANGE) {
        return None;
    }
    if directives(request).any(|(name, _)| name == "no-store") {
        return None;
    }
    let (mut is_public, mut fresh, mut stale_if_error, mut has_shared_age) = (false, 0, None, false);
    for (name, value) in directives(fields) {
        let seconds = || value.and_then(|value| value.trim_matches('"').parse::<u64>().ok());
        match name.as_str() {
            "private" | "no-store" | "no-cache" | "must-revalidate" | "proxy-revalidate" => return None,
            "public" => is_public = true,
            "max-age" if !has_shared_age => fresh = seconds().unwrap_or(0),
            "s-maxage" => (is_public, has_shared_age, fresh) = (true, true, seconds().unwrap_or(0)),
            "stale-if-error" => stale_if_error = seconds(),
            _ => {}
        }
    }
    if is_personal(request) && !is_public {
        return None;
    }
    let age: u64 = fields.get(header::AGE).and_then(|age| age.to_str().ok()).and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    // A time for shared caches alone means that it is to be asked again after it (RFC 9111 section 5.2.2.10), unless errors are excepted.
    let allowed = stale_if_error.or(has_shared_age.then_some(0)).map(|stale| Duration::from_secs(fresh.saturating_add(stale).saturating_sub(age)));
    let longest = allowed.map_or(spec.max_age, |allowed| allowed.min(spec.max_age));
    let vary = varies(request, fields)?;
    (!longest.is_zero()).then(|| Kept { headers: headers::passed_on(fields), body: Vec::new(), at: now, until: now + longest, age, is_public, vary })
}

/// Whether a request says who is behind it.
fn is_personal(request: &HeaderMap) -> bool {
    request.contains_key(header::AUTHORIZATION) || request.contains_key(header::COOKIE)
}

/// What of the request the answer depends on; none if on more than the request says.
fn varies(request: &HeaderMap, answer: &HeaderMap) -> Option<Vec<(HeaderName, Option<HeaderValue>)>> {
    let mut vary = Vec::new();
    for value in answer.get_all(header::VARY) {
        for name in value.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name: HeaderName = name.parse().ok().filter(|_| name != "*")?;
            let value = request.get(&name).cloned();
            vary.push((name, value));
        }
    }
    Some(vary)
}

/// The directives of `cache-control`, in lower case.
fn directives(fields: &HeaderMap) -> impl Iterator<Item = (String, Option<&str>)> {
    let values = fields.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|directive| match directive.split_once('=') {
        Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.trim())),
        None => (directive.trim().to_ascii_lowercase(), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::snapshot::Origin, resilience::some_instant};

    fn fields(text: &'static str) -> HeaderMap {
        let pairs = text.split('\n').filter_map(|line| line.split_once(": "));
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// For how many seconds an answer may be given, if it may be.
    fn seconds(request: &'static str, status: u16, answer: &'static str) -> Option<u64> {
        let spec = StaleSpec { mode: Mode::Enforce, max_age: Duration::from_secs(300), max_entry_bytes: 100, max_bytes: 1_000, name: "app".into(), origin: Origin::BuiltIn };
        let mut head = ResponseHeader::build(status, None).expect("a status");
        for (name, value) in &fields(answer) {
            head.append_header(name.clone(), value).expect("a value");
        }
        let now = some_instant();
        kept(&spec, &fields(request), &head, now).map(|kept| kept.until.duration_since(now).as_secs())
    }

    #[test]
    fn what_a_shared_cache_may_keep_is_kept_and_nothing_else() {
        let table = [
            ("", 200, "", Some(300)),
            ("", 200, "cache-control: max-age=60", Some(300)),
            ("", 200, "cache-control: max-age=60, stale-if-error=100", Some(160)),
            ("", 200, "cache-control: max-age=60, stale-if-error=100\nage: 50", Some(110)),
            ("", 200, "cache-control: stale-if-error=9999", Some(300)),
            ("", 200, "cache-control: stale-if-error=0", None),
            ("", 200, "cache-control: s-maxage=60", Some(60)),
            ("", 200, "cache-control: S-MaxAge=60, max-age=1, stale-if-error=\"10\"", Some(70)),
            ("", 200, "cache-control: private", None),
            ("", 200, "cache-control: max-age=60, No-Store", None),
            ("", 200, "cache-control: no-cache", None),
            ("", 200, "cache-control: must-revalidate, stale-if-error=60", None),
            ("", 200, "cache-control: proxy-revalidate", None),
            ("", 200, "set-cookie: a=b", None),
            ("", 200, "vary: *", None),
            ("", 200, "vary: accept, accept-language", Some(300)),
            ("", 200, "content-length: 100", Some(300)),
            ("", 200, "content-length: 101", None),
            ("", 206, "", None),
            ("", 203, "", None),
            ("", 404, "", None),
            ("range: bytes=0-1", 200, "", None),
            ("cache-control: no-store", 200, "", None),
            ("authorization: Basic x", 200, "", None),
            ("authorization: Basic x", 200, "cache-control: public", Some(300)),
            ("cookie: a=b", 200, "cache-control: max-age=60", None),
            ("cookie: a=b", 200, "cache-control: s-maxage=60", Some(60)),
        ];
        for (request, status, answer, expected) in table {
            assert_eq!(seconds(request, status, answer), expected, "{request} / {status} {answer}");
        }
    }
}

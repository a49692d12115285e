//! Which answers may be kept and given again when the backend fails (RFC 9111, RFC 5861).
//!
//! The policy is the contract by which stale answers may be given at all (RFC 9111 section 4.2.4); what the app forbids stays forbidden.
//! What could be one person's is neither kept nor given: requests with `authorization` or `cookie` have to do with answers only that are said to
//! be public, and an answer that sets a cookie is not kept.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::http::ResponseHeader;

use super::{client::Client, headers, serve::Exchange};
use crate::{
    clock,
    policy::snapshot::StaleSpec,
    resilience::Mode,
    state::stale::{Kept, StaleState},
};

/// Fields that say who is behind a request.
const PERSONAL: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
];

/// The largest age that is believed (RFC 9111 section 1.2.2).
const MAX_AGE: u64 = 1 << 31;

/// An answer on its way that will be kept if it comes to its end.
pub(super) struct Capture {
    state: Arc<StaleState>,
    address: String,
    kept: Kept,
    max: usize,
    body: BytesMut,
}

impl Capture {
    /// Takes a piece; `false` if it has become too long.
    pub(super) fn push(&mut self, piece: &Bytes) -> bool {
        if self.body.len() + piece.len() > self.max {
            return false;
        }
        self.body.extend_from_slice(piece);
        true
    }

    /// It is complete.
    pub(super) fn keep(self) {
        self.state.keep(
            &self.address,
            Kept {
                body: self.body.freeze(),
                ..self.kept
            },
        );
    }
}

/// What there is to know about a request and what is kept.
fn section<'e>(exchange: &'e Exchange<'_>) -> Option<(&'e StaleSpec, &'e Arc<StaleState>)> {
    exchange
        .destination
        .policy
        .stale
        .as_ref()
        .zip(exchange.destination.stale.as_ref())
}

/// The name under which an answer is kept.
fn address(exchange: &Exchange<'_>) -> String {
    format!(
        "{} {}",
        exchange.target.authority, exchange.target.path_and_query
    )
}

/// By which way a request came: an app may write what it is told about it into its answer.
fn way(exchange: &Exchange<'_>, client: &Client) -> String {
    let request = &client.head().headers;
    let spec = &exchange.route.spec;
    let mut way = spec.name.to_string();
    // Writing to a string cannot fail.
    _ = match (&spec.filters.host, &spec.filters.path) {
        (None, None) => Ok(()),
        (host, path) => write!(way, " {host:?} {path:?}"),
    };
    for value in [headers::FORWARDED_HOST, headers::FORWARDED_PROTO]
        .iter()
        .flat_map(|name| request.get_all(name))
    {
        way.push(' ');
        way.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    if client.peer.is_secure {
        way.push_str(" https");
    }
    way
}

/// Begins to keep an answer that may be, and forgets what it makes untrue.
pub(super) fn capture(
    exchange: &Exchange<'_>,
    client: &Client,
    answer: &ResponseHeader,
) -> Option<Box<Capture>> {
    let all = &exchange.live.stale;
    // What another sidecar has made of a failure is no answer of the app's.
    if all.is_empty() || answer.headers.contains_key(headers::REASON) {
        return None;
    }
    let head = client.head();
    if head.method != Method::GET {
        // What has been changed is not what was kept, wherever (RFC 9111 section 4.4).
        if ![Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&head.method)
            && answer.status.as_u16() < 400
        {
            let address = address(exchange);
            all.iter().for_each(|state| state.forget(&address));
        }
        return None;
    }
    let (spec, state) = section(exchange)?;
    let (allowed, address) = (allowed(spec, answer), address(exchange));
    if allowed.is_none() && matches!(answer.status.as_u16(), 200 | 404 | 410) {
        state.forget(&address);
    }
    let allowed =
        allowed.filter(|allowed| may_be_kept_for(&head.headers, answer, allowed.is_public))?;
    let now = clock::now();
    let kept = Kept {
        headers: headers::passed_on(&answer.headers),
        body: Bytes::new(),
        at: now,
        until: now + allowed.longest,
        age: allowed.age,
        is_public: allowed.is_public,
        way: way(exchange, client).into(),
        vary: varies(&head.headers, &answer.headers)?,
    };
    Some(Box::new(Capture {
        state: state.clone(),
        address,
        kept,
        max: spec.max_entry_bytes,
        body: BytesMut::new(),
    }))
}

/// The answer that is given instead of a failure, and how old it is; in shadow mode it is only said that there is one.
pub(super) fn find(
    exchange: &Exchange<'_>,
    client: &Client,
) -> Option<(Arc<Kept>, Duration, Mode)> {
    let (spec, state) = section(exchange)?;
    let head = client.head();
    let wants_no_other =
        directives(&head.headers).any(|(name, _)| name == "no-cache" || name == "no-store");
    if ![Method::GET, Method::HEAD].contains(&head.method) || wants_no_other {
        return None;
    }
    let now = clock::now();
    let kept = state.find(
        &address(exchange),
        &way(exchange, client),
        &head.headers,
        spec.max_age,
        now,
    );
    let kept = kept.filter(|kept| kept.is_public || !is_personal(&head.headers))?;
    let age = now
        .saturating_duration_since(kept.at)
        .saturating_add(kept.age);
    Some((kept, age, spec.mode))
}

/// What an answer allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowed {
    /// How long it may be given.
    longest: Duration,
    /// How old it is.
    age: Duration,
    /// Whether to anybody, whoever it was made for.
    is_public: bool,
}

/// Whether an answer to a GET allows that it is kept; none if it forbids it, or is too long.
fn allowed(spec: &StaleSpec, answer: &ResponseHeader) -> Option<Allowed> {
    let fields = &answer.headers;
    let number = |name: HeaderName| {
        fields
            .get(name)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse::<u64>().ok())
    };
    let is_too_long = number(header::CONTENT_LENGTH).is_some_and(|length| {
        usize::try_from(length).map_or(true, |length| length > spec.max_entry_bytes)
    });
    if answer.status != 200 || is_too_long {
        return None;
    }
    let (mut is_public, mut fresh, mut stale_if_error, mut has_shared_age) =
        (false, 0, None, false);
    for (name, value) in directives(fields) {
        let seconds = || value.and_then(|value| value.trim_matches('"').parse::<u64>().ok());
        match name.as_str() {
            "private" | "no-store" | "no-cache" | "must-revalidate" | "proxy-revalidate" => {
                return None;
            }
            "public" => is_public = true,
            "max-age" if !has_shared_age => fresh = seconds().unwrap_or(0),
            "s-maxage" => (is_public, has_shared_age, fresh) = (true, true, seconds().unwrap_or(0)),
            "stale-if-error" => stale_if_error = seconds(),
            _ => {}
        }
    }
    let age = number(header::AGE).unwrap_or(0).min(MAX_AGE);
    // A time for shared caches alone means that it is to be asked again after it (RFC 9111 section 5.2.2.10), unless errors are excepted.
    let stated = stale_if_error
        .or(has_shared_age.then_some(0))
        .map(|stale| Duration::from_secs(fresh.saturating_add(stale).saturating_sub(age)));
    let longest = stated.map_or(spec.max_age, |stated| stated.min(spec.max_age));
    (!longest.is_zero()).then_some(Allowed {
        longest,
        age: Duration::from_secs(age),
        is_public,
    })
}

/// Whether an answer that may be kept may be kept from this request.
fn may_be_kept_for(request: &HeaderMap, answer: &ResponseHeader, is_public: bool) -> bool {
    let is_whole =
        !request.contains_key(header::RANGE) && !answer.headers.contains_key(header::SET_COOKIE);
    is_whole
        && (is_public || !is_personal(request))
        && !directives(request).any(|(name, _)| name == "no-store")
}

/// Whether a request says who is behind it.
fn is_personal(request: &HeaderMap) -> bool {
    PERSONAL.iter().any(|name| request.contains_key(name))
}

/// What of the request the answer depends on; none if on more than the request says.
fn varies(request: &HeaderMap, answer: &HeaderMap) -> Option<Vec<(HeaderName, Vec<HeaderValue>)>> {
    let mut vary = Vec::new();
    for value in answer.get_all(header::VARY) {
        for name in value
            .to_str()
            .ok()?
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let name: HeaderName = name.parse().ok().filter(|_| name != "*")?;
            let values = request.get_all(&name).iter().cloned().collect();
            vary.push((name, values));
        }
    }
    Some(vary)
}

/// The directives of `cache-control`, in lower case.
fn directives(fields: &HeaderMap) -> impl Iterator<Item = (String, Option<&str>)> {
    let values = fields
        .get_all(header::CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|directive| match directive.split_once('=') {
            Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.trim())),
            None => (directive.trim().to_ascii_lowercase(), None),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::snapshot::Origin;

    fn fields(text: &'static str) -> HeaderMap {
        let pairs = text.split('\n').filter_map(|line| line.split_once(": "));
        pairs
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    /// For how many seconds an answer may be given, if it may be.
    fn seconds(request: &'static str, status: u16, answer: &'static str) -> Option<u64> {
        let spec = StaleSpec {
            mode: Mode::Enforce,
            max_age: Duration::from_secs(300),
            max_entry_bytes: 100,
            max_bytes: 1_000,
            name: "app".into(),
            origin: Origin::BuiltIn,
        };
        let mut head = ResponseHeader::build(status, None).expect("a status");
        for (name, value) in &fields(answer) {
            head.append_header(name.clone(), value).expect("a value");
        }
        let request = fields(request);
        let allowed = allowed(&spec, &head)
            .filter(|allowed| may_be_kept_for(&request, &head, allowed.is_public))?;
        varies(&request, &head.headers).map(|_| allowed.longest.as_secs())
    }

    #[test]
    fn what_a_shared_cache_may_keep_is_kept_and_nothing_else() {
        let table = [
            ("", 200, "", Some(300)),
            ("", 200, "cache-control: max-age=60", Some(300)),
            (
                "",
                200,
                "cache-control: max-age=60, stale-if-error=100",
                Some(160),
            ),
            (
                "",
                200,
                "cache-control: max-age=60, stale-if-error=100\nage: 50",
                Some(110),
            ),
            ("", 200, "cache-control: stale-if-error=9999", Some(300)),
            ("", 200, "cache-control: stale-if-error=0", None),
            ("", 200, "cache-control: s-maxage=60", Some(60)),
            (
                "",
                200,
                "cache-control: S-MaxAge=60, max-age=1, stale-if-error=\"10\"",
                Some(70),
            ),
            ("", 200, "cache-control: private", None),
            ("", 200, "cache-control: max-age=60, No-Store", None),
            ("", 200, "cache-control: no-cache", None),
            (
                "",
                200,
                "cache-control: must-revalidate, stale-if-error=60",
                None,
            ),
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
            ("x-api-key: 7", 200, "", None),
            (
                "",
                200,
                "cache-control: max-age=60, stale-if-error=100\nage: 18446744073709551615",
                None,
            ),
            (
                "authorization: Basic x",
                200,
                "cache-control: public",
                Some(300),
            ),
            ("cookie: a=b", 200, "cache-control: max-age=60", None),
            ("cookie: a=b", 200, "cache-control: s-maxage=60", Some(60)),
        ];
        for (request, status, answer, expected) in table {
            assert_eq!(
                seconds(request, status, answer),
                expected,
                "{request} / {status} {answer}"
            );
        }
    }
}

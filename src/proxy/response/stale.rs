//! Which answers may be kept and given again when the backend fails (RFC 9111, RFC 5861).
//!
//! The policy is the contract by which stale answers may be given at all (RFC 9111 section 4.2.4); what the app forbids stays forbidden.
//! What could be one person's is neither kept nor given: requests with `authorization` or `cookie` have to do with answers only that are said to
//! be public, and an answer that sets a cookie is not kept.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::http::ResponseHeader;

use crate::{
    clock,
    policy::snapshot::StaleIfErrorSpec,
    proxy::{
        headers::hop_by_hop::copy_end_to_end_headers,
        request::{context::RequestContext, view::RequestView},
        wire::header_names::{FORWARDED_HOST, FORWARDED_PROTO, REASON},
    },
    resilience::Mode,
    state::policies::stale::{CachedResponse, StaleState},
};

/// Fields that say who is behind a request.
const CREDENTIAL_HEADERS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
];

/// The largest age that is believed (RFC 9111 section 1.2.2).
const MAX_AGE_SECONDS: u64 = 1 << 31;

/// An answer on its way that will be kept if it comes to its end.
pub(crate) struct ResponseCapture {
    state: Arc<StaleState>,
    cache_key: String,
    entry: CachedResponse,
    max_body_bytes: usize,
    body: BytesMut,
}

impl ResponseCapture {
    /// Takes a piece; `false` if it has become too long.
    pub(crate) fn append(&mut self, chunk: &Bytes) -> bool {
        if self.body.len() + chunk.len() > self.max_body_bytes {
            return false;
        }
        self.body.extend_from_slice(chunk);
        true
    }

    /// It is complete.
    pub(crate) fn store(self) {
        self.state.store(
            &self.cache_key,
            CachedResponse {
                body: self.body.freeze(),
                ..self.entry
            },
        );
    }
}

/// What there is to know about a request and what is kept.
fn stale_if_error<'e>(
    context: &'e RequestContext<'_>,
) -> Option<(&'e StaleIfErrorSpec, &'e Arc<StaleState>)> {
    context
        .destination
        .policy
        .stale_if_error
        .as_ref()
        .zip(context.destination.stale_cache.as_ref())
}

/// The name under which an answer is kept.
fn cache_key(context: &RequestContext<'_>) -> String {
    format!(
        "{} {}",
        context.request_target.authority, context.request_target.path_and_query
    )
}

/// By which way a request came: an app may write what it is told about it into its answer.
fn forwarding_key(context: &RequestContext<'_>, request: &RequestView<'_>) -> String {
    let headers = &request.head.headers;
    let spec = &context.route.spec;
    let mut forwarding_key = spec.name.to_string();
    // Writing to a string cannot fail.
    _ = match (&spec.filters.host_rewrite, &spec.filters.path_rewrite) {
        (None, None) => Ok(()),
        (host, path) => write!(forwarding_key, " {host:?} {path:?}"),
    };
    for value in [FORWARDED_HOST, FORWARDED_PROTO]
        .iter()
        .flat_map(|name| headers.get_all(name))
    {
        forwarding_key.push(' ');
        forwarding_key.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    if request.identity.is_secure {
        forwarding_key.push_str(" https");
    }
    forwarding_key
}

/// Begins to keep an answer that may be, and forgets what it makes untrue.
pub(crate) fn begin_capture(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    response_head: &ResponseHeader,
) -> Option<Box<ResponseCapture>> {
    let stale_states = &context.active_policy.stale_caches;
    // What another sidecar has made of a failure is no answer of the app's.
    if stale_states.is_empty() || response_head.headers.contains_key(REASON) {
        return None;
    }
    let head = request.head;
    if head.method != Method::GET {
        // What has been changed is not what was kept, wherever (RFC 9111 section 4.4).
        if ![Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&head.method)
            && response_head.status.as_u16() < 400
        {
            let cache_key = cache_key(context);
            stale_states
                .iter()
                .for_each(|state| state.remove(&cache_key));
        }
        return None;
    }
    let (spec, state) = stale_if_error(context)?;
    let (allowance, cache_key) = (stale_allowance(spec, response_head), cache_key(context));
    if allowance.is_none() && matches!(response_head.status.as_u16(), 200 | 404 | 410) {
        state.remove(&cache_key);
    }
    let allowance = allowance
        .filter(|allowance| is_storable_for(&head.headers, response_head, allowance.is_public))?;
    let now = clock::now();
    let entry = CachedResponse {
        headers: copy_end_to_end_headers(&response_head.headers),
        body: Bytes::new(),
        received_at: now,
        expires_at: now + allowance.lifetime,
        initial_age: allowance.age,
        is_public: allowance.is_public,
        forwarding_key: forwarding_key(context, request).into(),
        vary: vary_values(&head.headers, &response_head.headers)?,
    };
    Some(Box::new(ResponseCapture {
        state: state.clone(),
        cache_key,
        entry,
        max_body_bytes: spec.max_entry_bytes,
        body: BytesMut::new(),
    }))
}

/// The answer that is given instead of a failure, and how old it is; in shadow mode it is only said that there is one.
pub(crate) fn find_stale(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> Option<(Arc<CachedResponse>, Duration, Mode)> {
    let (spec, state) = stale_if_error(context)?;
    let head = request.head;
    let forbids_cached = cache_control_directives(&head.headers)
        .any(|(name, _)| name == "no-cache" || name == "no-store");
    if ![Method::GET, Method::HEAD].contains(&head.method) || forbids_cached {
        return None;
    }
    let now = clock::now();
    let entry = state.find(
        &cache_key(context),
        &forwarding_key(context, request),
        &head.headers,
        spec.max_age,
        now,
    );
    let entry = entry.filter(|entry| entry.is_public || !has_credentials(&head.headers))?;
    let age = now
        .saturating_duration_since(entry.received_at)
        .saturating_add(entry.initial_age);
    Some((entry, age, spec.mode))
}

/// What an answer allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StaleAllowance {
    /// How long it may be given.
    lifetime: Duration,
    /// How old it is.
    age: Duration,
    /// Whether to anybody, whoever it was made for.
    is_public: bool,
}

/// Whether an answer to a GET allows that it is kept; none if it forbids it, or is too long.
fn stale_allowance(
    spec: &StaleIfErrorSpec,
    response_head: &ResponseHeader,
) -> Option<StaleAllowance> {
    let headers = &response_head.headers;
    let parse_number = |name: HeaderName| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse::<u64>().ok())
    };
    let is_too_long = parse_number(header::CONTENT_LENGTH).is_some_and(|length| {
        usize::try_from(length).map_or(true, |length| length > spec.max_entry_bytes)
    });
    if response_head.status != 200 || is_too_long {
        return None;
    }
    let (mut is_public, mut fresh_seconds, mut stale_if_error_seconds, mut has_shared_age) =
        (false, 0, None, false);
    for (name, value) in cache_control_directives(headers) {
        let parse_seconds = || value.and_then(|value| value.trim_matches('"').parse::<u64>().ok());
        match name.as_str() {
            "private" | "no-store" | "no-cache" | "must-revalidate" | "proxy-revalidate" => {
                return None;
            }
            "public" => is_public = true,
            "max-age" if !has_shared_age => fresh_seconds = parse_seconds().unwrap_or(0),
            "s-maxage" => {
                (is_public, has_shared_age, fresh_seconds) =
                    (true, true, parse_seconds().unwrap_or(0))
            }
            "stale-if-error" => stale_if_error_seconds = parse_seconds(),
            _ => {}
        }
    }
    let age = parse_number(header::AGE).unwrap_or(0).min(MAX_AGE_SECONDS);
    // A time for shared caches alone means that it is to be asked again after it (RFC 9111 section 5.2.2.10), unless errors are excepted.
    let stated_lifetime =
        stale_if_error_seconds
            .or(has_shared_age.then_some(0))
            .map(|stale_seconds| {
                Duration::from_secs(
                    fresh_seconds
                        .saturating_add(stale_seconds)
                        .saturating_sub(age),
                )
            });
    let lifetime = stated_lifetime.map_or(spec.max_age, |stated_lifetime| {
        stated_lifetime.min(spec.max_age)
    });
    (!lifetime.is_zero()).then_some(StaleAllowance {
        lifetime,
        age: Duration::from_secs(age),
        is_public,
    })
}

/// Whether an answer that may be kept may be kept from this request.
fn is_storable_for(request: &HeaderMap, response_head: &ResponseHeader, is_public: bool) -> bool {
    let is_complete = !request.contains_key(header::RANGE)
        && !response_head.headers.contains_key(header::SET_COOKIE);
    is_complete
        && (is_public || !has_credentials(request))
        && !cache_control_directives(request).any(|(name, _)| name == "no-store")
}

/// Whether a request says who is behind it.
fn has_credentials(request: &HeaderMap) -> bool {
    CREDENTIAL_HEADERS
        .iter()
        .any(|name| request.contains_key(name))
}

/// What of the request the answer depends on; none if on more than the request says.
fn vary_values(
    request: &HeaderMap,
    response_headers: &HeaderMap,
) -> Option<Vec<(HeaderName, Vec<HeaderValue>)>> {
    let mut vary = Vec::new();
    for value in response_headers.get_all(header::VARY) {
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
fn cache_control_directives(headers: &HeaderMap) -> impl Iterator<Item = (String, Option<&str>)> {
    let values = headers
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
mod tests;

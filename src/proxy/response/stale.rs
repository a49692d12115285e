//! Decides which responses may be stored, and served again when the backend fails (RFC 9111,
//! RFC 5861).
//!
//! The policy is the contract that permits stale responses at all (RFC 9111 section 4.2.4).
//! What the app forbids stays forbidden. Responses that could belong to one person are neither
//! stored nor served:
//!
//! - A request with credentials only uses responses that are declared public.
//! - A response that sets a cookie is not stored.
//!
//! The module does not decide what counts as a failure. `state::policies::stale` stores the
//! responses and limits their size.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, header};

use crate::{
    clock,
    message::{
        ResponseHead,
        headers::{Headers, as_text},
    },
    policy::sections::stale_if_error::StaleIfErrorSpec,
    proxy::{
        headers::hop_by_hop::copy_end_to_end_headers,
        request::{context::RequestContext, view::RequestView},
        wire::header_names::{FORWARDED_HOST, FORWARDED_PROTO, REASON},
    },
    resilience::Mode,
    state::policies::stale::{CachedResponse, StaleLookup, StaleState, VaryField},
};

/// Request fields that identify the person or program behind a request.
const CREDENTIAL_HEADERS: [&str; 4] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-api-key",
];

/// Maximum of a stated `age`, in seconds (RFC 9111 section 1.2.2).
const MAX_AGE_SECONDS: u64 = 1 << 31;

/// A copy of a response being relayed, which is stored if the response completes.
pub(crate) struct ResponseCapture {
    state: Arc<StaleState>,
    cache_key: String,
    entry: CachedResponse,
    max_body_bytes: usize,
    body: BytesMut,
}

impl ResponseCapture {
    /// Appends a chunk and returns `true`, or returns `false` if the body exceeds the maximum
    /// size of an entry.
    pub(crate) fn append(&mut self, chunk: &Bytes) -> bool {
        if self.body.len() + chunk.len() > self.max_body_bytes {
            return false;
        }
        self.body.extend_from_slice(chunk);
        true
    }

    /// Stores the response, which is complete, under its cache key.
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

/// Returns the policy and the cache of the destination, if both are configured.
fn stale_if_error<'e>(
    context: &'e RequestContext<'_>,
) -> Option<(&'e StaleIfErrorSpec, &'e Arc<StaleState>)> {
    context
        .destination
        .policy
        .stale_if_error
        .as_ref()
        .zip(context.destination.policy_states.stale_cache.as_ref())
}

/// Returns the cache key of a request: its authority, path and query.
fn cache_key(context: &RequestContext<'_>) -> String {
    format!(
        "{} {}",
        context.request_target.authority, context.request_target.path_and_query
    )
}

/// Returns a key for the way on which the request arrived: its route, rewrites, forwarded host
/// and scheme.
///
/// An app may include these values in its response, so a stored response is served only on the
/// same way.
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
        forwarding_key.push_str(&String::from_utf8_lossy(value));
    }
    if request.identity.is_secure {
        forwarding_key.push_str(" https");
    }
    forwarding_key
}

/// Starts to capture a response if it may be stored, and removes stored responses that it
/// invalidates.
///
/// Returns `None` if the response must not be stored.
pub(crate) fn begin_capture(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    response_head: &ResponseHead,
) -> Option<Box<ResponseCapture>> {
    let stale_states = &context.active_policy.policy_states.stale_cache;
    // A rejection of another sidecar is no response of the app.
    if stale_states.is_empty() || response_head.headers.contains_key(REASON) {
        return None;
    }
    let head = request.head;
    if head.method != Method::GET {
        // A successful unsafe request invalidates the stored responses for its target, in every
        // cache (RFC 9111 section 4.4).
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

/// Returns the stored response that may replace a failure, its age, and the mode of the policy.
///
/// In shadow mode the response must not be served. A request that forbids cached responses
/// receives none.
pub(crate) fn find_stale(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> Option<(Arc<CachedResponse>, Duration, Mode)> {
    let (spec, state) = stale_if_error(context)?;
    let head = request.head;
    if ![Method::GET, Method::HEAD].contains(&head.method) || forbids_cached(&head.headers) {
        return None;
    }
    let now = clock::now();
    let lookup = StaleLookup {
        cache_key: &cache_key(context),
        forwarding_key: &forwarding_key(context, request),
        headers: &head.headers,
    };
    let entry = state.find(lookup, spec.max_age, now);
    let entry = entry.filter(|entry| entry.is_public || !has_credentials(&head.headers))?;
    let age = now
        .saturating_duration_since(entry.received_at)
        .saturating_add(entry.initial_age);
    Some((entry, age, spec.mode))
}

/// What the head of a response permits a shared cache to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StaleAllowance {
    /// Time from now for which the response may be served.
    lifetime: Duration,
    /// Age of the response when it was received.
    age: Duration,
    /// Whether the response may be served to any client, even for a request with credentials.
    is_public: bool,
}

/// Returns how long a response to a GET may be stored.
///
/// Returns `None` if the response forbids storage, has another status than 200, is too long, or
/// has no lifetime left.
fn stale_allowance(
    spec: &StaleIfErrorSpec,
    response_head: &ResponseHead,
) -> Option<StaleAllowance> {
    let headers = &response_head.headers;
    let parse_number = |name: HeaderName| {
        let value = headers.get_str(name);
        value.and_then(|value| value.trim().parse::<u64>().ok())
    };
    let is_too_long = parse_number(header::CONTENT_LENGTH).is_some_and(|length| {
        usize::try_from(length).map_or(true, |length| length > spec.max_entry_bytes)
    });
    if response_head.status != 200 || is_too_long {
        return None;
    }
    let mut directives = CacheDirectives::default();
    for (name, value) in cache_control_directives(headers) {
        directives.record(&name, value)?;
    }
    let has_shared_age = directives.shared_max_age.is_some();
    let is_public = directives.is_public || has_shared_age;
    let fresh_seconds = directives
        .shared_max_age
        .or(directives.max_age)
        .unwrap_or(0);
    let age = parse_number(header::AGE).unwrap_or(0).min(MAX_AGE_SECONDS);
    // `s-maxage` requires revalidation after it ends (RFC 9111 section 5.2.2.10), unless
    // `stale-if-error` permits more.
    let stated_lifetime = directives
        .stale_if_error
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

/// Directives of a response that limit how long it may be served, in seconds.
#[derive(Debug, Default)]
struct CacheDirectives {
    is_public: bool,
    max_age: Option<u64>,
    shared_max_age: Option<u64>,
    stale_if_error: Option<u64>,
}

impl CacheDirectives {
    /// Records one directive; `None` if it forbids storage.
    ///
    /// A directive that is repeated, or that has an invalid value, is read the stricter way: the
    /// smallest value, and 0 for an invalid one (RFC 9111 section 4.2.1).
    fn record(&mut self, name: &str, value: Option<&str>) -> Option<()> {
        let limit = match name {
            "private" | "no-store" | "no-cache" | "must-revalidate" | "proxy-revalidate" => {
                return None;
            }
            "public" => {
                self.is_public = true;
                return Some(());
            }
            "max-age" => &mut self.max_age,
            "s-maxage" => &mut self.shared_max_age,
            "stale-if-error" => &mut self.stale_if_error,
            _ => return Some(()),
        };
        let seconds = parse_seconds(value);
        *limit = Some(limit.map_or(seconds, |earlier| earlier.min(seconds)));
        Some(())
    }
}

/// Parses the seconds of a directive; an invalid value is 0.
fn parse_seconds(value: Option<&str>) -> u64 {
    let value = value.unwrap_or_default();
    let digits = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number).unwrap_or(0)
}

/// Returns whether a request accepts no cached response that is older than its origin states.
fn forbids_cached(request: &Headers) -> bool {
    cache_control_directives(request).any(|(name, value)| match name.as_str() {
        "no-cache" | "no-store" => true,
        "max-age" | "max-stale" | "stale-if-error" => value.is_some() && parse_seconds(value) == 0,
        _ => false,
    })
}

/// Returns whether a storable response head may be stored for this request.
fn is_storable_for(request: &Headers, response_head: &ResponseHead, is_public: bool) -> bool {
    let is_complete = !request.contains_key(header::RANGE)
        && !response_head.headers.contains_key(header::SET_COOKIE);
    is_complete
        && (is_public || !has_credentials(request))
        && !cache_control_directives(request).any(|(name, _)| name == "no-store")
}

/// Returns whether a request carries credentials.
fn has_credentials(request: &Headers) -> bool {
    CREDENTIAL_HEADERS
        .iter()
        .any(|name| request.contains_key(name))
}

/// Returns the request fields on which the response depends, with all their values.
///
/// Returns `None` if the response also depends on something else (`vary: *`) or the field is
/// malformed.
fn vary_values(request: &Headers, response_headers: &Headers) -> Option<Vec<VaryField>> {
    let mut vary = Vec::new();
    for value in response_headers.get_all(header::VARY) {
        for name in as_text(value)?
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let name: HeaderName = name.parse().ok().filter(|_| name != "*")?;
            vary.push(VaryField {
                values: request.get_all(&name).map(Box::from).collect(),
                name: name.as_str().into(),
            });
        }
    }
    Some(vary)
}

/// Returns the directives of `cache-control`, with names in lower case.
fn cache_control_directives(headers: &Headers) -> impl Iterator<Item = (String, Option<&str>)> {
    let values = headers.get_all(header::CACHE_CONTROL).filter_map(as_text);
    values
        .flat_map(|value| value.split(','))
        .map(|directive| match directive.split_once('=') {
            Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.trim())),
            None => (directive.trim().to_ascii_lowercase(), None),
        })
}

#[cfg(test)]
mod tests;

//! Rate limit headers of a response: the limit that is nearest to reject the client.
//!
//! The formats follow draft-ietf-httpapi-ratelimit-headers, versions 10 and 03. The module does
//! not decide which limit is nearest.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue};

use crate::{
    policy::document::RateLimitHeaders,
    proxy::request::{
        rate_limit_outcome::{NearestLimit, RateLimitOutcome},
        rejection::round_up_to_seconds,
    },
    state::active_policy::RouteState,
};

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Returns the rate limit headers for the nearest limit, in the format of the route's policy.
pub(crate) fn limit_headers(
    route: &RouteState,
    outcome: &RateLimitOutcome,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let headers = outcome
        .nearest
        .as_ref()
        .map(|nearest| format_headers(route, nearest));
    headers.unwrap_or_default().into_iter().flatten()
}

fn format_headers(
    route: &RouteState,
    nearest: &NearestLimit,
) -> [Option<(HeaderName, HeaderValue)>; 3] {
    let spec = &route.spec.rate_limits;
    let rule = &spec.rules[nearest.rule_index];
    let (left, more) = (nearest.remaining, round_up_to_seconds(nearest.reset_after));
    match spec.headers {
        RateLimitHeaders::Off => [None, None, None],
        RateLimitHeaders::Draft10 => {
            let mut text = String::with_capacity(rule.name.len() + 24);
            // Writing to a string cannot fail.
            _ = write!(text, r#""{}";r={left};t={more}"#, rule.name);
            [
                rule.policy_header
                    .clone()
                    .map(|policy| (RATELIMIT_POLICY, policy)),
                HeaderValue::try_from(text)
                    .ok()
                    .map(|limit| (RATELIMIT, limit)),
                None,
            ]
        }
        RateLimitHeaders::DraftVersion03 => [
            rule.policy_header
                .clone()
                .map(|policy| (X_RATELIMIT_LIMIT, policy)),
            Some((X_RATELIMIT_REMAINING, left.into())),
            Some((X_RATELIMIT_RESET, more.into())),
        ],
    }
}

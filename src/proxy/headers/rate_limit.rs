//! Rate limit headers of a response: the limit that is nearest to reject the client.
//!
//! The formats follow draft-ietf-httpapi-ratelimit-headers, versions 10 and 03. The module does
//! not decide which limit is nearest.

use std::fmt::Write as _;

use crate::{
    message::headers::Headers,
    policy::document::RateLimitHeaders,
    proxy::request::{rate_limit_outcome::RateLimitOutcome, rejection::round_up_to_seconds},
    state::active_policy::RouteState,
};

const RATELIMIT_POLICY: &str = "ratelimit-policy";
const RATELIMIT: &str = "ratelimit";
const X_RATELIMIT_LIMIT: &str = "x-ratelimit-limit";
const X_RATELIMIT_REMAINING: &str = "x-ratelimit-remaining";
const X_RATELIMIT_RESET: &str = "x-ratelimit-reset";

/// Appends the rate limit headers for the nearest limit, in the format of the route's policy.
pub(crate) fn append_limit_headers(
    route: &RouteState,
    outcome: &RateLimitOutcome,
    headers: &mut Headers,
) {
    let Some(nearest) = &outcome.nearest else {
        return;
    };
    let spec = &route.spec.rate_limits;
    let rule = &spec.rules[nearest.rule_index];
    // It is missing if the headers are off, or the name of the rule is no valid value.
    let Some(policy) = &rule.policy_header else {
        return;
    };
    let (left, more) = (nearest.remaining, round_up_to_seconds(nearest.reset_after));
    match spec.headers {
        RateLimitHeaders::Off => {}
        RateLimitHeaders::Draft10 => {
            let mut text = String::with_capacity(rule.name.len() + 24);
            // Writing to a string cannot fail.
            _ = write!(text, r#""{}";r={left};t={more}"#, rule.name);
            headers.append(RATELIMIT_POLICY, policy);
            headers.append(RATELIMIT, text);
        }
        RateLimitHeaders::DraftVersion03 => {
            headers.append(X_RATELIMIT_LIMIT, policy);
            headers.append_number(X_RATELIMIT_REMAINING, left.into());
            headers.append_number(X_RATELIMIT_RESET, more);
        }
    }
}

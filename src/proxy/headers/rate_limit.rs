//! Rate limit headers of a response: the limit that is nearest to reject the client.
//!
//! The formats follow draft-ietf-httpapi-ratelimit-headers, versions 10 and 03. The module does
//! not decide which limit is nearest.

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
            headers.append(RATELIMIT_POLICY, policy);
            // `"NAME";r=LEFT;t=SECONDS`, without the cost of `std::fmt`.
            let (mut remaining, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
            let parts = [
                "\"",
                &rule.name,
                "\";r=",
                remaining.format(left),
                ";t=",
                seconds.format(more),
            ];
            headers.append_parts(RATELIMIT, &parts.map(str::as_bytes));
        }
        RateLimitHeaders::DraftVersion03 => {
            headers.append(X_RATELIMIT_LIMIT, policy);
            headers.append_number(X_RATELIMIT_REMAINING, left.into());
            headers.append_number(X_RATELIMIT_RESET, more);
        }
    }
}

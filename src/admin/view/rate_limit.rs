//! The rate limits of a route.

use serde::Serialize;

use crate::state::active_policy::RouteState;

#[derive(Serialize)]
pub(super) struct RateLimitView {
    name: String,
    mode: &'static str,
    requests: u32,
    per_seconds: u64,
    burst: u32,
    /// Whether all instances share the quota.
    is_global: bool,
    /// Number of instances that the quota is divided by.
    instances: u32,
    keys: usize,
    overflowed: u64,
    /// Requests that were delayed until their tokens were available.
    delayed: u64,
    /// Responses whose cost header is not a whole number.
    unreadable_costs: u64,
}

pub(super) fn rate_limits(route: &RouteState) -> Vec<RateLimitView> {
    let limits = route.rate_limits.iter();
    limits
        .map(|limit| {
            let usage = limit.usage();
            let rule = limit.rule();
            RateLimitView {
                name: limit.name().to_string(),
                mode: rule.mode.name(),
                requests: rule.quota.requests.get(),
                per_seconds: rule.quota.unit_seconds.get(),
                burst: rule.quota.burst.get(),
                is_global: rule.is_global,
                instances: limit.instances(),
                keys: usage.keys,
                overflowed: usage.overflowed_requests,
                delayed: usage.delayed_requests,
                unreadable_costs: usage.invalid_costs,
            }
        })
        .collect()
}

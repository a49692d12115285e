//! The routes with their backends and rate limits.

use serde::Serialize;

use crate::{
    admin::view::rate_limit::{RateLimitView, rate_limits},
    policy::snapshot::RouteActionSpec,
    state::{State, active_policy::RouteState},
};

#[derive(Serialize)]
pub(in crate::admin) struct RouteView {
    name: String,
    direction: String,
    backends: Vec<RouteBackendView>,
    rate_limits: Vec<RateLimitView>,
}

#[derive(Serialize)]
struct RouteBackendView {
    name: String,
    weight: u32,
    breaker: Option<String>,
    limit: Option<String>,
    retry_budget: String,
}

pub(in crate::admin) fn routes(state: &State) -> Vec<RouteView> {
    let active_policy = state.active_policy.load();
    let backends = |route: &RouteState| {
        let destinations = route.destinations.iter();
        destinations
            .map(|destination| RouteBackendView {
                name: destination.backend.spec.name.to_string(),
                weight: destination.weight,
                breaker: destination
                    .breaker
                    .as_ref()
                    .map(|breaker| breaker.name().to_string()),
                limit: destination
                    .policy_states
                    .concurrency_limit
                    .as_ref()
                    .map(|limit| limit.name().to_string()),
                retry_budget: destination.retry_budget.name().to_string(),
            })
            .collect()
    };
    active_policy
        .routes
        .iter()
        .map(|route| RouteView {
            name: match route.spec.action {
                RouteActionSpec::Forward(_) => route.spec.name.to_string(),
                RouteActionSpec::Redirect(_) => format!("{} (redirect)", route.spec.name),
            },
            direction: route.spec.direction.to_string(),
            backends: backends(route),
            rate_limits: rate_limits(route),
        })
        .collect()
}

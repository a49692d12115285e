//! Where a request goes: the route, then one of its backends.

use crate::{
    policy::{
        matching::{PathMatchSpec, RouteMatchInput, RouteRule},
        snapshot::PathRewriteSpec,
    },
    proxy::request::{authority::RequestTarget, rejection::Rejection, view::RequestView},
    resilience::balance,
    state::active_policy::{ActivePolicy, DestinationState, RouteState},
    telemetry::reason::Reason,
};

/// The route that takes a request, and the rule by which it does.
pub(crate) fn match_route<'l>(
    active_policy: &'l ActivePolicy,
    request: &RequestView<'_>,
    target: &RequestTarget,
) -> Result<(&'l RouteState, &'l RouteRule), Rejection> {
    let head = request.head;
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let input = RouteMatchInput {
        host: target.host(),
        path: target.path(),
        method: head.method.as_str(),
        header: &header,
    };
    // By its address, should the listener have been renamed a moment ago.
    let listeners = &active_policy.snapshot.listeners;
    let listener = listeners
        .iter()
        .position(|listener| listener.name == request.listener.name);
    let listener = listener.or_else(|| {
        listeners
            .iter()
            .position(|listener| listener.address == request.listener.address)
    });
    let rules = listener.map_or(&[][..], |index| {
        &active_policy.snapshot.rules_by_listener[index]
    });
    let rule = rules
        .iter()
        .find(|rule| rule.matches(&input))
        .ok_or_else(|| Rejection::from_reason(Reason::NoRoute))?;
    Ok((&active_policy.routes[rule.route], rule))
}

/// One of a route's backends by weight, and its index.
pub(crate) fn select_destination(
    route: &RouteState,
) -> Result<(usize, &DestinationState), Rejection> {
    let selected = match route.destinations.as_slice() {
        [only] if only.weight > 0 => Some(0),
        destinations => balance::pick_weighted(
            destinations
                .iter()
                .map(|destination| f64::from(destination.weight)),
            fastrand::f64(),
        ),
    };
    selected
        .map(|index| (index, &route.destinations[index]))
        .ok_or_else(|| Rejection::from_reason(Reason::NoRoute))
}

/// The path after a rewrite, with the query.
pub(crate) fn rewrite_path(
    target: &RequestTarget,
    rule: &RouteRule,
    rewrite: &PathRewriteSpec,
) -> String {
    let path = match rewrite {
        PathRewriteSpec::Full(path) => path.clone(),
        PathRewriteSpec::Prefix(new) => {
            let old = if let PathMatchSpec::Prefix(prefix) = &rule.request_match.path {
                prefix.as_str()
            } else {
                ""
            };
            format!(
                "{new}{}",
                target.path().strip_prefix(old).unwrap_or_default()
            )
        }
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{slash}{path}{}", target.query())
}

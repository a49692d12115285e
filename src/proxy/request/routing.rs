//! Selects the route of a request, and one of the destinations of the route.
//!
//! The rules of a listener are sorted by precedence when the policy is compiled, so the first
//! match wins. Destinations are drawn by weight. The module does not know whether a destination
//! is healthy.

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

/// Returns the route of a request and the rule of it that matched.
///
/// # Errors
/// A rejection with [`Reason::NoRoute`] if no rule of the listener matches.
pub(crate) fn match_route<'l>(
    active_policy: &'l ActivePolicy,
    request: &RequestView<'_>,
    target: &RequestTarget,
) -> Result<(&'l RouteState, &'l RouteRule), Rejection> {
    let head = request.head;
    let header = |name: &str| head.headers.get_str(name);
    let input = RouteMatchInput {
        host: target.host(),
        path: target.path(),
        method: head.method.as_str(),
        header: &header,
    };
    // The listener may have been renamed by a reload since the request arrived. Its address
    // then identifies it.
    let listeners = &active_policy.snapshot.listeners;
    let listener = listeners
        .iter()
        .position(|listener| listener.name == request.listener.name);
    let listener = listener.or_else(|| {
        listeners
            .iter()
            .position(|listener| listener.address == request.listener.address)
    });
    let rule = listener
        .and_then(|index| active_policy.snapshot.route_tables[index].find(&input))
        .ok_or_else(|| Rejection::from_reason(Reason::NoRoute))?;
    Ok((&active_policy.routes[rule.route], rule))
}

/// Draws a destination of a route by weight, and returns its index as well.
///
/// # Errors
/// A rejection with [`Reason::NoRoute`] if all weights are 0.
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

/// Returns the path after a rewrite, with the query of the request.
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

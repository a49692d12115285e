//! Where a request goes: the route, then one of its backends.

use super::{authority::Target, client::Client, rejection::Rejection};
use crate::{
    policy::{
        matching::{PathSpec, RequestView, Rule},
        snapshot::PathRewriteSpec,
    },
    resilience::balance,
    state::live::{DestinationState, Live, RouteState},
    telemetry::reason::Reason,
};

/// The route that takes a request, and the rule by which it does.
pub(super) fn route<'l>(
    live: &'l Live,
    client: &Client,
    target: &Target,
) -> Result<(&'l RouteState, &'l Rule), Rejection> {
    let head = client.head();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let request = RequestView {
        host: target.host(),
        path: target.path(),
        method: head.method.as_str(),
        header: &header,
    };
    // By its address, should the listener have been renamed a moment ago.
    let listeners = &live.snapshot.listeners;
    let listener = listeners
        .iter()
        .position(|listener| listener.name == client.listener.name);
    let listener = listener.or_else(|| {
        listeners
            .iter()
            .position(|listener| listener.address == client.listener.address)
    });
    let rules = listener.map_or(&[][..], |index| &live.snapshot.rules[index]);
    let rule = rules
        .iter()
        .find(|rule| rule.matches(&request))
        .ok_or_else(|| Rejection::of(Reason::NoRoute))?;
    Ok((&live.routes[rule.route], rule))
}

/// One of a route's backends by weight, and its index.
pub(super) fn destination(route: &RouteState) -> Result<(usize, &DestinationState), Rejection> {
    let picked = match route.destinations.as_slice() {
        [only] if only.weight > 0 => Some(0),
        several => balance::weighted(
            several
                .iter()
                .map(|destination| f64::from(destination.weight)),
            fastrand::f64(),
        ),
    };
    picked
        .map(|index| (index, &route.destinations[index]))
        .ok_or_else(|| Rejection::of(Reason::NoRoute))
}

/// The path after a rewrite, with the query.
pub(super) fn rewritten(target: &Target, rule: &Rule, rewrite: &PathRewriteSpec) -> String {
    let path = match rewrite {
        PathRewriteSpec::Full(path) => path.clone(),
        PathRewriteSpec::Prefix(new) => {
            let old = if let PathSpec::Prefix(prefix) = &rule.matches.path {
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

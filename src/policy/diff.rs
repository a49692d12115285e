//! Describes the changes between two policy snapshots in words.
//!
//! The log of a reload and `outrigger diff` show the lines. A line names what is added, removed
//! or changed. If a change affects state, the line states whether the state is retained or
//! reset. The module describes the effect; the state registry implements it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
};

use crate::policy::snapshot::{
    BackendSpec, Destination, Discovery, EndpointAddress, EndpointSpec, GlobalRateLimitSpec,
    PolicySnapshot, PolicySpec, RouteActionSpec, RouteSpec,
};

/// Returns one line per difference, or no line if both snapshots have the same effect.
#[must_use]
pub fn diff(old: &PolicySnapshot, new: &PolicySnapshot) -> Vec<String> {
    let mut lines = Vec::new();
    diff_named_items(
        "listener",
        &old.listeners,
        &new.listeners,
        |listener| &listener.name,
        &mut lines,
        |old, new| {
            let mut changes = Vec::new();
            record_change("address", &old.address, &new.address, &mut changes);
            record_change("direction", &old.direction, &new.direction, &mut changes);
            record_change("protocol", &old.protocol, &new.protocol, &mut changes);
            record_change("limits", &old.limits, &new.limits, &mut changes);
            if old.tls != new.tls {
                changes.push("TLS changed, for new connections".to_owned());
            }
            changes
        },
    );
    if old.global_rate_limit != new.global_rate_limit {
        let describe = |global: &Option<GlobalRateLimitSpec>| {
            global
                .as_ref()
                .map_or_else(|| "nobody's".to_owned(), GlobalRateLimitSpec::to_string)
        };
        lines.push(format!(
            "globalRateLimit: {} -> {}",
            describe(&old.global_rate_limit),
            describe(&new.global_rate_limit)
        ));
    }
    diff_named_items(
        "backend",
        &old.backends,
        &new.backends,
        |backend| &backend.name,
        &mut lines,
        diff_backend,
    );
    diff_named_items(
        "route",
        &old.routes,
        &new.routes,
        |route| &route.name,
        &mut lines,
        |a, b| diff_route(old, a, new, b),
    );
    diff_named_items(
        "recovery",
        &old.recoveries,
        &new.recoveries,
        |recovery| &recovery.name,
        &mut lines,
        |old, new| {
            let mut changes = Vec::new();
            record_change("rule", old, new, &mut changes);
            changes
        },
    );
    record_change("lifecycle", &old.lifecycle, &new.lifecycle, &mut lines);
    record_change("protection", &old.protection, &new.protection, &mut lines);
    record_change("access log", &old.access_log, &new.access_log, &mut lines);
    lines
}

fn diff_named_items<'s, T>(
    kind: &str,
    old: &'s [T],
    new: &'s [T],
    name: impl Fn(&'s T) -> &'s str,
    lines: &mut Vec<String>,
    changes: impl Fn(&'s T, &'s T) -> Vec<String>,
) {
    let old: BTreeMap<&str, &T> = old.iter().map(|item| (name(item), item)).collect();
    let new: BTreeMap<&str, &T> = new.iter().map(|item| (name(item), item)).collect();
    lines.extend(
        old.keys()
            .filter(|name| !new.contains_key(*name))
            .map(|name| format!("{kind} {name} removed")),
    );
    for (name, after) in new {
        match old.get(name) {
            None => lines.push(format!("{kind} {name} added")),
            Some(before) => lines.extend(
                changes(before, after)
                    .into_iter()
                    .map(|change| format!("{kind} {name}: {change}")),
            ),
        }
    }
}

fn record_change<T: PartialEq + Debug>(what: &str, old: &T, new: &T, lines: &mut Vec<String>) {
    if old != new {
        lines.push(format!("{what} {old:?} -> {new:?}"));
    }
}

fn diff_backend(old: &BackendSpec, new: &BackendSpec) -> Vec<String> {
    let mut changes = Vec::new();
    if let (Discovery::Static(before), Discovery::Static(after)) = (&old.discovery, &new.discovery)
    {
        diff_endpoints(before, after, &mut changes);
    } else {
        record_change("discovery", &old.discovery, &new.discovery, &mut changes);
    }
    record_change("protocol", &old.protocol, &new.protocol, &mut changes);
    if old.tls != new.tls {
        changes.push("TLS changed, for new connections; idle ones are closed".to_owned());
    }
    record_change(
        "load balancer",
        &old.load_balancer,
        &new.load_balancer,
        &mut changes,
    );
    record_change("slow start", &old.warm_up, &new.warm_up, &mut changes);
    record_change(
        "endpoints in the zone",
        &old.min_endpoints_in_zone,
        &new.min_endpoints_in_zone,
        &mut changes,
    );
    if old.outlier_detection != new.outlier_detection {
        changes.push("outlier detection changed, what is ejected stays so".to_owned());
    }
    record_change(
        "panic threshold",
        &old.panic_threshold_percent,
        &new.panic_threshold_percent,
        &mut changes,
    );
    if old.active_check != new.active_check {
        changes.push("health check changed, what is known of the endpoints is kept".to_owned());
    }
    changes
}

/// Returns one line per endpoint that is added, removed, or changed in weight, zone or priority.
#[must_use]
pub fn describe_endpoint_changes(before: &[EndpointSpec], after: &[EndpointSpec]) -> Vec<String> {
    let mut changes = Vec::new();
    diff_endpoints(before, after, &mut changes);
    changes
}

fn index_by_address(endpoints: &[EndpointSpec]) -> HashMap<&EndpointAddress, &EndpointSpec> {
    endpoints
        .iter()
        .map(|endpoint| (&endpoint.address, endpoint))
        .collect()
}

fn diff_endpoints(before: &[EndpointSpec], after: &[EndpointSpec], changes: &mut Vec<String>) {
    let (known, wanted) = (index_by_address(before), index_by_address(after));
    for endpoint in before {
        if !wanted.contains_key(&endpoint.address) {
            changes.push(format!(
                "endpoint {} removed, its requests run on",
                endpoint.address
            ));
        }
    }
    for endpoint in after {
        match known.get(&endpoint.address) {
            None => changes.push(format!("endpoint {} added", endpoint.address)),
            Some(earlier) => {
                let label = format!("endpoint {}", endpoint.address);
                record_change(
                    &format!("{label} weight"),
                    &earlier.weight,
                    &endpoint.weight,
                    changes,
                );
                record_change(
                    &format!("{label} zone"),
                    &earlier.zone,
                    &endpoint.zone,
                    changes,
                );
                record_change(
                    &format!("{label} priority"),
                    &earlier.priority,
                    &endpoint.priority,
                    changes,
                );
            }
        }
    }
}

fn diff_route(
    old_snapshot: &PolicySnapshot,
    old: &RouteSpec,
    new_snapshot: &PolicySnapshot,
    new: &RouteSpec,
) -> Vec<String> {
    let mut changes = Vec::new();
    // The values are not shown, because a header that a filter sets may be a secret.
    if old.filters != new.filters {
        changes.push("filters changed".to_owned());
    }
    record_change(
        "allow",
        &old.allowed_identities,
        &new.allowed_identities,
        &mut changes,
    );
    let matches = |snapshot: &PolicySnapshot, name: &str| {
        let rules = snapshot
            .rules_by_listener
            .iter()
            .zip(&snapshot.listeners)
            .flat_map(|(rules, listener)| {
                rules.iter().map(move |rule| (listener.name.clone(), rule))
            });
        rules
            .filter(|(_, rule)| *snapshot.routes[rule.route].name == *name)
            .map(|(listener, rule)| {
                format!("{listener} {:?} {:?}", rule.hostname, rule.request_match)
            })
            .collect::<Vec<_>>()
    };
    if matches(old_snapshot, &old.name) != matches(new_snapshot, &new.name) {
        changes.push("what it matches has changed".to_owned());
    }
    record_change(
        "fault injection",
        &old.fault_injection,
        &new.fault_injection,
        &mut changes,
    );
    record_change("mirrors", &old.mirrors, &new.mirrors, &mut changes);
    diff_rate_limits(old, new, &mut changes);
    let (RouteActionSpec::Forward(before), RouteActionSpec::Forward(after)) =
        (&old.action, &new.action)
    else {
        if format!("{:?}", old.action) != format!("{:?}", new.action) {
            changes.push("action changed".to_owned());
        }
        return changes;
    };
    let weights = |snapshot: &PolicySnapshot, to: &[Destination]| {
        to.iter()
            .map(|to| (snapshot.backends[to.backend].name.clone(), to.weight))
            .collect::<Vec<_>>()
    };
    record_change(
        "backends",
        &weights(old_snapshot, before),
        &weights(new_snapshot, after),
        &mut changes,
    );
    for destination in after {
        let name = &new_snapshot.backends[destination.backend].name;
        if let Some(earlier) = before
            .iter()
            .find(|earlier| old_snapshot.backends[earlier.backend].name == *name)
        {
            diff_policy(name, &earlier.policy, &destination.policy, &mut changes);
        }
    }
    changes
}

fn diff_rate_limits(old: &RouteSpec, new: &RouteSpec, changes: &mut Vec<String>) {
    record_change(
        "headers about rate limits",
        &old.rate_limits.headers,
        &new.rate_limits.headers,
        changes,
    );
    for rule in &old.rate_limits.rules {
        if !new
            .rate_limits
            .rules
            .iter()
            .any(|other| other.name == rule.name)
        {
            changes.push(format!("rate limit {} removed", rule.name));
        }
    }
    for rule in &new.rate_limits.rules {
        match old
            .rate_limits
            .rules
            .iter()
            .find(|other| other.name == rule.name)
        {
            None => changes.push(format!(
                "rate limit {} added, its buckets begin full",
                rule.name
            )),
            Some(before) if before.selectors != rule.selectors => changes.push(format!(
                "rate limit {}: selectors changed, its buckets begin full",
                rule.name
            )),
            Some(before) if before.to_string() == rule.to_string() => {}
            Some(before) => changes.push(format!(
                "rate limit {}: {before} -> {rule}, its buckets keep their share",
                rule.name
            )),
        }
    }
}

fn diff_policy(backend: &str, old: &PolicySpec, new: &PolicySpec, changes: &mut Vec<String>) {
    record_change(
        &format!("timeouts towards {backend}"),
        &old.timeouts,
        &new.timeouts,
        changes,
    );
    record_change(
        &format!("retries towards {backend}"),
        &old.retry,
        &new.retry,
        changes,
    );
    if old.retry_budget != new.retry_budget {
        changes.push(format!(
            "retry budget towards {backend} changed, it begins anew"
        ));
    }
    record_change(
        &format!("hedging towards {backend}"),
        &old.hedging,
        &new.hedging,
        changes,
    );
    if old.fallback != new.fallback {
        changes.push(format!("fallback of {backend} changed"));
    }
    if old.stale_if_error != new.stale_if_error {
        let retention_note = if new.stale_if_error.is_some()
            && old.stale_if_error.as_ref().map(|stale| &stale.name)
                == new.stale_if_error.as_ref().map(|stale| &stale.name)
        {
            ", what is kept stays"
        } else {
            ""
        };
        changes.push(format!(
            "stale answers of {backend} changed{retention_note}"
        ));
    }
    if old.admission_control != new.admission_control {
        changes.push(format!(
            "admission control towards {backend} changed; with other numbers it counts anew"
        ));
    }
    match (&old.breaker, &new.breaker) {
        (Some(before), Some(after)) if before != after => {
            let window = before.config.window() == after.config.window();
            let state = if before.name != after.name || before.scope != after.scope {
                "it begins anew, closed"
            } else if window {
                "state and counts are kept"
            } else {
                "state is kept, counts begin anew with the new window"
            };
            changes.push(format!("breaker towards {backend} changed, {state}"));
        }
        (None, Some(_)) => changes.push(format!("breaker towards {backend} added, closed")),
        (Some(_), None) => changes.push(format!("breaker towards {backend} removed")),
        _ => {}
    }
    match (&old.connection_limits, &new.connection_limits) {
        (Some(before), Some(after)) if before != after => changes.push(format!(
            "limits towards {backend} changed, what is in flight is kept"
        )),
        (None, Some(_)) => changes.push(format!("limits towards {backend} added")),
        (Some(_), None) => changes.push(format!("limits towards {backend} removed")),
        _ => {}
    }
}

//! What changes between two sets, in words.
//!
//! For the log of a reload and for `outrigger diff`. It says what is added, removed and changed by name, and for a change what
//! becomes of the state: whether it is kept, or begins anew, and why.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
};

use super::snapshot::{
    ActionSpec, Address, BackendSpec, Discovery, EndpointSpec, GlobalRateLimitSpec, PolicySpec,
    RouteSpec, Snapshot,
};

/// The differences, one line each; empty if the sets mean the same.
#[must_use]
pub fn diff(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    named(
        "listener",
        &old.listeners,
        &new.listeners,
        |listener| &listener.name,
        &mut lines,
        |old, new| {
            let mut changes = Vec::new();
            changed("address", &old.address, &new.address, &mut changes);
            changed("direction", &old.direction, &new.direction, &mut changes);
            changed("protocol", &old.protocol, &new.protocol, &mut changes);
            changed("limits", &old.limits, &new.limits, &mut changes);
            if old.tls != new.tls {
                changes.push("TLS changed, for new connections".to_owned());
            }
            changes
        },
    );
    if old.global_rate_limit != new.global_rate_limit {
        let told = |global: &Option<GlobalRateLimitSpec>| {
            global
                .as_ref()
                .map_or_else(|| "nobody's".to_owned(), GlobalRateLimitSpec::to_string)
        };
        lines.push(format!(
            "globalRateLimit: {} -> {}",
            told(&old.global_rate_limit),
            told(&new.global_rate_limit)
        ));
    }
    named(
        "backend",
        &old.backends,
        &new.backends,
        |backend| &backend.name,
        &mut lines,
        backend_changes,
    );
    named(
        "route",
        &old.routes,
        &new.routes,
        |route| &route.name,
        &mut lines,
        |a, b| route_changes(old, a, new, b),
    );
    named(
        "recovery",
        &old.recoveries,
        &new.recoveries,
        |recovery| &recovery.name,
        &mut lines,
        |old, new| {
            let mut changes = Vec::new();
            changed("rule", old, new, &mut changes);
            changes
        },
    );
    changed("lifecycle", &old.lifecycle, &new.lifecycle, &mut lines);
    changed("protection", &old.protection, &new.protection, &mut lines);
    changed("access log", &old.access_log, &new.access_log, &mut lines);
    lines
}

fn named<'s, T>(
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
    for (name, now) in new {
        match old.get(name) {
            None => lines.push(format!("{kind} {name} added")),
            Some(before) => lines.extend(
                changes(before, now)
                    .into_iter()
                    .map(|change| format!("{kind} {name}: {change}")),
            ),
        }
    }
}

fn changed<T: PartialEq + Debug>(what: &str, old: &T, new: &T, lines: &mut Vec<String>) {
    if old != new {
        lines.push(format!("{what} {old:?} -> {new:?}"));
    }
}

fn backend_changes(old: &BackendSpec, new: &BackendSpec) -> Vec<String> {
    let mut changes = Vec::new();
    if let (Discovery::Static(before), Discovery::Static(now)) = (&old.discovery, &new.discovery) {
        endpoint_changes(before, now, &mut changes);
    } else {
        changed("discovery", &old.discovery, &new.discovery, &mut changes);
    }
    changed("protocol", &old.protocol, &new.protocol, &mut changes);
    if old.tls != new.tls {
        changes.push("TLS changed, for new connections; idle ones are closed".to_owned());
    }
    changed("load balancer", &old.balancer, &new.balancer, &mut changes);
    changed("slow start", &old.warm_up, &new.warm_up, &mut changes);
    changed(
        "endpoints in the zone",
        &old.min_endpoints_in_zone,
        &new.min_endpoints_in_zone,
        &mut changes,
    );
    if old.outlier != new.outlier {
        changes.push("outlier detection changed, what is ejected stays so".to_owned());
    }
    changed(
        "panic threshold",
        &old.panic_threshold,
        &new.panic_threshold,
        &mut changes,
    );
    if old.check != new.check {
        changes.push("health check changed, what is known of the endpoints is kept".to_owned());
    }
    changes
}

/// Which endpoints come, go, and get another place among their peers.
#[must_use]
pub fn endpoint_lines(before: &[EndpointSpec], now: &[EndpointSpec]) -> Vec<String> {
    let mut changes = Vec::new();
    endpoint_changes(before, now, &mut changes);
    changes
}

fn by_address(endpoints: &[EndpointSpec]) -> HashMap<&Address, &EndpointSpec> {
    endpoints
        .iter()
        .map(|endpoint| (&endpoint.address, endpoint))
        .collect()
}

fn endpoint_changes(before: &[EndpointSpec], now: &[EndpointSpec], changes: &mut Vec<String>) {
    let (known, wanted) = (by_address(before), by_address(now));
    for endpoint in before {
        if !wanted.contains_key(&endpoint.address) {
            changes.push(format!(
                "endpoint {} removed, its requests run on",
                endpoint.address
            ));
        }
    }
    for endpoint in now {
        match known.get(&endpoint.address) {
            None => changes.push(format!("endpoint {} added", endpoint.address)),
            Some(earlier) => {
                let place = format!("endpoint {}", endpoint.address);
                changed(
                    &format!("{place} weight"),
                    &earlier.weight,
                    &endpoint.weight,
                    changes,
                );
                changed(
                    &format!("{place} zone"),
                    &earlier.zone,
                    &endpoint.zone,
                    changes,
                );
                changed(
                    &format!("{place} priority"),
                    &earlier.priority,
                    &endpoint.priority,
                    changes,
                );
            }
        }
    }
}

fn route_changes(
    old_set: &Snapshot,
    old: &RouteSpec,
    new_set: &Snapshot,
    new: &RouteSpec,
) -> Vec<String> {
    let mut changes = Vec::new();
    // Not shown: a header that a filter sets may be a secret.
    if old.filters != new.filters {
        changes.push("filters changed".to_owned());
    }
    changed("allow", &old.allowed, &new.allowed, &mut changes);
    let matches = |set: &Snapshot, name: &str| {
        let rules = set
            .rules
            .iter()
            .zip(&set.listeners)
            .flat_map(|(rules, listener)| {
                rules.iter().map(move |rule| (listener.name.clone(), rule))
            });
        rules
            .filter(|(_, rule)| *set.routes[rule.route].name == *name)
            .map(|(listener, rule)| format!("{listener} {:?} {:?}", rule.hostname, rule.matches))
            .collect::<Vec<_>>()
    };
    if matches(old_set, &old.name) != matches(new_set, &new.name) {
        changes.push("what it matches has changed".to_owned());
    }
    changed("fault injection", &old.fault, &new.fault, &mut changes);
    changed("mirrors", &old.mirrors, &new.mirrors, &mut changes);
    rate_limit_changes(old, new, &mut changes);
    let (ActionSpec::Forward(before), ActionSpec::Forward(now)) = (&old.action, &new.action) else {
        if format!("{:?}", old.action) != format!("{:?}", new.action) {
            changes.push("action changed".to_owned());
        }
        return changes;
    };
    let weights = |set: &Snapshot, to: &[super::snapshot::Destination]| {
        to.iter()
            .map(|to| (set.backends[to.backend].name.clone(), to.weight))
            .collect::<Vec<_>>()
    };
    changed(
        "backends",
        &weights(old_set, before),
        &weights(new_set, now),
        &mut changes,
    );
    for destination in now {
        let name = &new_set.backends[destination.backend].name;
        if let Some(earlier) = before
            .iter()
            .find(|earlier| old_set.backends[earlier.backend].name == *name)
        {
            policy_changes(name, &earlier.policy, &destination.policy, &mut changes);
        }
    }
    changes
}

fn rate_limit_changes(old: &RouteSpec, new: &RouteSpec, changes: &mut Vec<String>) {
    changed(
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

fn policy_changes(backend: &str, old: &PolicySpec, new: &PolicySpec, changes: &mut Vec<String>) {
    changed(
        &format!("timeouts towards {backend}"),
        &old.timeouts,
        &new.timeouts,
        changes,
    );
    changed(
        &format!("retries towards {backend}"),
        &old.retry,
        &new.retry,
        changes,
    );
    if old.budget != new.budget {
        changes.push(format!(
            "retry budget towards {backend} changed, it begins anew"
        ));
    }
    changed(
        &format!("hedging towards {backend}"),
        &old.hedging,
        &new.hedging,
        changes,
    );
    if old.fallback != new.fallback {
        changes.push(format!("fallback of {backend} changed"));
    }
    if old.stale != new.stale {
        let kept = if new.stale.is_some()
            && old.stale.as_ref().map(|stale| &stale.name)
                == new.stale.as_ref().map(|stale| &stale.name)
        {
            ", what is kept stays"
        } else {
            ""
        };
        changes.push(format!("stale answers of {backend} changed{kept}"));
    }
    if old.admission != new.admission {
        changes.push(format!(
            "admission control towards {backend} changed; with other numbers it counts anew"
        ));
    }
    match (&old.breaker, &new.breaker) {
        (Some(before), Some(now)) if before != now => {
            let window = before.config.window() == now.config.window();
            let state = if before.name != now.name || before.scope != now.scope {
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
    match (&old.limits, &new.limits) {
        (Some(before), Some(now)) if before != now => changes.push(format!(
            "limits towards {backend} changed, what is in flight is kept"
        )),
        (None, Some(_)) => changes.push(format!("limits towards {backend} added")),
        (Some(_), None) => changes.push(format!("limits towards {backend} removed")),
        _ => {}
    }
}

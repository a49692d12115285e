//! Differences between two versions of a route.

use crate::policy::{
    diff::changes::Changes,
    matching::RouteRule,
    sections::{fault_injection::FaultInjection, rate_limit::RateLimitSection, section::Section},
    snapshot::{Destination, PolicySnapshot, RouteActionSpec, RouteSpec},
};

/// Compares two versions of a route, each with the snapshot that contains it.
pub(super) fn diff(
    (old_snapshot, old): (&PolicySnapshot, &RouteSpec),
    (new_snapshot, new): (&PolicySnapshot, &RouteSpec),
    changes: &mut Changes,
) {
    changes.value("direction", &old.direction, &new.direction);
    // The values are not shown, because a header that a filter sets may be a secret.
    changes.hidden("filters", &old.filters, &new.filters, "");
    changes.value("allow", &allowed_clients(old), &allowed_clients(new));
    changes.hidden(
        "matches",
        &list_rules(old_snapshot, &old.name),
        &list_rules(new_snapshot, &new.name),
        "",
    );
    diff_section::<FaultInjection>(&old.fault_injection, &new.fault_injection, changes);
    changes.list("mirrors", &old.mirrors, &new.mirrors);
    diff_section::<RateLimitSection>(&old.rate_limits, &new.rate_limits, changes);
    diff_policies(
        "fallback or mirror backend",
        (old_snapshot, &old.auxiliary_backends),
        (new_snapshot, &new.auxiliary_backends),
        changes,
    );
    match (&old.action, &new.action) {
        (RouteActionSpec::Redirect(before), RouteActionSpec::Redirect(after)) => {
            changes.hidden("redirect", before, after, "");
        }
        (RouteActionSpec::Forward(before), RouteActionSpec::Forward(after)) => {
            changes.list(
                "backendRefs",
                &list_weights(old_snapshot, before),
                &list_weights(new_snapshot, after),
            );
            diff_policies(
                "backend",
                (old_snapshot, before),
                (new_snapshot, after),
                changes,
            );
        }
        (RouteActionSpec::Forward(_), RouteActionSpec::Redirect(_)) => {
            changes.push("redirects now, and sends requests to no backend");
        }
        (RouteActionSpec::Redirect(_), RouteActionSpec::Forward(to)) => {
            let backends = list_weights(new_snapshot, to).join(", ");
            changes.push(format!(
                "sends requests to [{backends}] now, and does not redirect"
            ));
        }
    }
}

/// Returns the clients that may use a route, in words.
fn allowed_clients(route: &RouteSpec) -> String {
    let identities = route.allowed_identities.as_ref();
    identities.map_or_else(
        || "all clients".to_owned(),
        |identities| format!("[{}]", identities.join(", ")),
    )
}

fn diff_section<S: Section>(old: &S::Spec, new: &S::Spec, changes: &mut Changes) {
    for change in S::describe_changes(old, new) {
        changes.push(format!("{} {change}", S::KEY));
    }
}

/// Compares the policies of the backends that both versions use.
fn diff_policies(
    role: &str,
    (old_snapshot, before): (&PolicySnapshot, &[Destination]),
    (new_snapshot, after): (&PolicySnapshot, &[Destination]),
    changes: &mut Changes,
) {
    for destination in after {
        let name = &new_snapshot.backends[destination.backend].name;
        let earlier = before
            .iter()
            .find(|earlier| old_snapshot.backends[earlier.backend].name == *name);
        let Some(earlier) = earlier else {
            continue;
        };
        for (key, change) in destination.policy.describe_changes(&earlier.policy) {
            changes.push(format!("{key} of {role} {name}: {change}"));
        }
    }
}

fn list_weights(snapshot: &PolicySnapshot, destinations: &[Destination]) -> Vec<String> {
    destinations
        .iter()
        .map(|to| {
            format!(
                "{} (weight {})",
                snapshot.backends[to.backend].name, to.weight
            )
        })
        .collect()
}

/// Returns the rules that lead to a route, with the names of their listeners.
fn list_rules<'s>(snapshot: &'s PolicySnapshot, route: &str) -> Vec<(&'s str, RuleConditions<'s>)> {
    let tables = snapshot.route_tables.iter().zip(&snapshot.listeners);
    tables
        .flat_map(|(table, listener)| {
            let rules = table.rules().iter();
            rules.map(|rule| (&*listener.name, rule))
        })
        .filter(|(_, rule)| *snapshot.routes[rule.route].name == *route)
        .map(|(listener, rule)| (listener, RuleConditions(rule)))
        .collect()
}

/// Conditions of a rule, without the index of its route, which differs between snapshots.
struct RuleConditions<'s>(&'s RouteRule);

impl PartialEq for RuleConditions<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.hostname == other.0.hostname && self.0.request_match == other.0.request_match
    }
}

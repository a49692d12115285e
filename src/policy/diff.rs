//! Describes the changes between two policy snapshots in words.
//!
//! The log of a reload and `outrigger diff` show the lines. A line names what is added, removed
//! or changed. If a change affects state, the line states whether the state is retained or
//! reset. The module describes the effect; the state registry implements it.

mod backend;
mod changes;
mod instance;
mod listener;
mod route;

use std::collections::BTreeMap;

pub use crate::policy::diff::backend::describe_endpoint_changes;
use crate::policy::{
    diff::changes::Changes,
    snapshot::{BackendSpec, ListenerSpec, PolicySnapshot, RecoverySpec, RouteSpec},
};

/// Returns one line per difference, or no line if both snapshots have the same effect.
#[must_use]
pub fn diff(old: &PolicySnapshot, new: &PolicySnapshot) -> Vec<String> {
    let mut lines = Vec::new();
    let items = ItemKind {
        kind: "listener",
        name: |listener: &ListenerSpec| &listener.name,
    };
    items.diff(&old.listeners, &new.listeners, &mut lines, listener::diff);
    let items = ItemKind {
        kind: "backend",
        name: |backend: &BackendSpec| &backend.name,
    };
    items.diff(&old.backends, &new.backends, &mut lines, backend::diff);
    let items = ItemKind {
        kind: "route",
        name: |route: &RouteSpec| &route.name,
    };
    items.diff(
        &old.routes,
        &new.routes,
        &mut lines,
        |before, after, changes| {
            route::diff((old, before), (new, after), changes);
        },
    );
    let items = ItemKind {
        kind: "recovery",
        name: |recovery: &RecoverySpec| &recovery.name,
    };
    items.diff(
        &old.recoveries,
        &new.recoveries,
        &mut lines,
        instance::diff_recovery,
    );
    instance::diff(old, new, &mut lines);
    lines
}

/// Kind of the items of a list, which have unique names.
struct ItemKind<T> {
    kind: &'static str,
    name: fn(&T) -> &str,
}

impl<T> ItemKind<T> {
    /// Appends a line for each item that is added, removed or changed.
    fn diff(
        &self,
        old: &[T],
        new: &[T],
        lines: &mut Vec<String>,
        diff_item: impl Fn(&T, &T, &mut Changes),
    ) {
        let Self { kind, name } = self;
        let by_name = |items| -> BTreeMap<&str, &T> {
            let items: &[T] = items;
            items.iter().map(|item| (name(item), item)).collect()
        };
        let (old, new) = (by_name(old), by_name(new));
        lines.extend(
            old.keys()
                .filter(|name| !new.contains_key(*name))
                .map(|name| format!("{kind} {name} removed")),
        );
        for (name, after) in new {
            let Some(before) = old.get(name) else {
                lines.push(format!("{kind} {name} added"));
                continue;
            };
            let mut changes = Changes::default();
            diff_item(before, after, &mut changes);
            lines.extend(changes.into_lines(&format!("{kind} {name}: ")));
        }
    }
}

#[cfg(test)]
mod tests;

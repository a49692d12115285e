//! Readiness gates: conditions that require at least one healthy and available endpoint of
//! other backends.
//!
//! A policy lists these backends. This module decides whether each condition is met. It does
//! not check endpoints itself; it reads the health that active checks and outlier detection
//! have recorded.

use std::sync::Arc;

use crate::{
    clock,
    resilience::health::Health,
    state::{State, active_policy::ActivePolicy, topology::backend::BackendState},
};

/// Prefix of the names of these conditions. It tells them apart from conditions of other
/// modules.
const CONDITION_PREFIX: &str = "backend-available:";

/// Updates the conditions of all readiness gates in the active policy.
pub(in crate::control) fn update_conditions(state: &State) {
    let (active_policy, now) = (state.active_policy.load(), clock::now());
    for backend in gated_backends(&active_policy) {
        // An endpoint without a completed check has the health `Unknown` and does not count.
        let healthy_count = backend
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.health() == Health::Healthy)
            .count()
            .min(backend.available_count());
        let reason = format!(
            "{healthy_count} of {} endpoints are available",
            backend.endpoints.len()
        );
        state.lifecycle.set_condition(
            &condition_name(&backend.spec.name),
            healthy_count > 0,
            reason,
            now,
        );
    }
}

/// Removes the conditions of gates that the active policy no longer contains, and updates the
/// others.
pub(in crate::control) fn reconcile(state: &State) {
    let active_policy = state.active_policy.load();
    let is_gone = |condition: &str| {
        condition.starts_with(CONDITION_PREFIX)
            && !gated_backends(&active_policy)
                .any(|backend| condition_name(&backend.spec.name) == condition)
    };
    for condition in state
        .lifecycle
        .conditions()
        .iter()
        .filter(|condition| is_gone(&condition.name))
    {
        state
            .lifecycle
            .remove_condition(&condition.name, clock::now());
    }
    update_conditions(state);
}

fn gated_backends(active_policy: &ActivePolicy) -> impl Iterator<Item = &Arc<BackendState>> {
    active_policy
        .snapshot
        .lifecycle
        .readiness_gates
        .iter()
        .map(|index| &active_policy.backends[*index])
}

fn condition_name(backend: &str) -> String {
    format!("{CONDITION_PREFIX}{backend}")
}

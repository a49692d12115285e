//! Readiness by other backends, where the policy wants it: of each at least one endpoint is known to be well.

use std::sync::Arc;

use crate::{
    clock,
    resilience::health::Health,
    state::{State, backend::BackendState, live::Live},
};

/// What the names of these conditions begin with.
const PREFIX: &str = "backend-available:";

/// Looks at all of them.
pub(super) fn look(state: &State) {
    let (live, now) = (state.live.load(), clock::now());
    for backend in gates(&live) {
        // Before its first check nobody knows.
        let well = backend
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.health() == Health::Healthy)
            .count()
            .min(backend.available());
        let why = format!(
            "{well} of {} endpoints are available",
            backend.endpoints.len()
        );
        state.lifecycle.set(
            &name(&backend.spec.name),
            well > 0,
            why,
            now,
            &state.telemetry,
        );
    }
}

/// Takes those back that the policies no longer want, and looks at those that they want.
pub(super) fn follow(state: &State) {
    let live = state.live.load();
    let is_gone = |condition: &str| {
        condition.starts_with(PREFIX)
            && !gates(&live).any(|backend| name(&backend.spec.name) == condition)
    };
    for condition in state
        .lifecycle
        .conditions()
        .iter()
        .filter(|condition| is_gone(&condition.name))
    {
        state
            .lifecycle
            .clear(&condition.name, clock::now(), &state.telemetry);
    }
    look(state);
}

fn gates(live: &Live) -> impl Iterator<Item = &Arc<BackendState>> {
    live.snapshot
        .lifecycle
        .gates
        .iter()
        .map(|index| &live.backends[*index])
}

fn name(backend: &str) -> String {
    format!("{PREFIX}{backend}")
}

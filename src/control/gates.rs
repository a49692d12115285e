//! Readiness by other backends, where the policy wants it: of each at least one endpoint is known to be well.

use std::sync::Arc;

use crate::{
    clock,
    resilience::health::Health,
    state::{State, backend::BackendState},
};

/// What the names of these conditions begin with.
const PREFIX: &str = "backend-available:";

/// Looks at all of them, and takes back those that the policy no longer wants.
pub(super) fn look(state: &State) {
    let (live, now) = (state.live.load(), clock::now());
    let gates: Vec<&Arc<BackendState>> = live.snapshot.lifecycle.gates.iter().map(|index| &live.backends[*index]).collect();
    for backend in &gates {
        // Before its first check nobody knows.
        let well = backend.endpoints.iter().filter(|endpoint| endpoint.health() == Health::Healthy).count().min(backend.available());
        let why = format!("{well} of {} endpoints are available", backend.endpoints.len());
        state.lifecycle.set(&name(&backend.spec.name), well > 0, why, now, &state.telemetry);
    }
    let is_gone = |condition: &str| condition.starts_with(PREFIX) && !gates.iter().any(|backend| name(&backend.spec.name) == condition);
    for condition in state.lifecycle.conditions().iter().filter(|condition| is_gone(&condition.name)) {
        state.lifecycle.clear(&condition.name, now, &state.telemetry);
    }
}

fn name(backend: &str) -> String {
    format!("{PREFIX}{backend}")
}

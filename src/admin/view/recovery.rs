//! The recoveries with their last events.

use serde::Serialize;

use crate::{clock::Rfc3339, policy::snapshot::RecoveryAction, state::State};

#[derive(Serialize)]
pub(in crate::admin) struct RecoveryView {
    name: String,
    mode: &'static str,
    backend: String,
    open_for_seconds: f64,
    ladder: Vec<&'static str>,
    cooldown_seconds: f64,
    max_per_hour: u32,
    last_events: Vec<String>,
}

pub(in crate::admin) fn recoveries(state: &State) -> Vec<RecoveryView> {
    let active_policy = state.active_policy.load();
    let recent = state.telemetry.recent_events();
    let events_of = |name: &str| {
        recent
            .iter()
            .filter(|record| record.event.recovery() == Some(name))
            .map(|record| format!("{} {}", Rfc3339(record.emitted_at), record.event))
            .collect()
    };
    let specs = active_policy.snapshot.recoveries.iter();
    specs
        .map(|spec| RecoveryView {
            name: spec.name.to_string(),
            mode: spec.mode.name(),
            backend: spec.backend.to_string(),
            open_for_seconds: spec.open_for.as_secs_f64(),
            ladder: spec
                .ladder
                .iter()
                .map(|action| match action {
                    RecoveryAction::Webhook { .. } => "Webhook",
                    RecoveryAction::FailReadiness => "FailReadiness",
                })
                .collect(),
            cooldown_seconds: spec.config.cooldown.as_secs_f64(),
            max_per_hour: spec.config.max_per_hour.get(),
            last_events: events_of(&spec.name),
        })
        .collect()
}

//! View of the circuit breakers and their counts.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    state::{State, policies::breaker::BreakerState},
    telemetry::label::Label,
};

#[derive(Serialize)]
pub(in crate::admin) struct BreakerView {
    name: String,
    mode: &'static str,
    state: &'static str,
    in_state_seconds: f64,
    calls: u32,
    failed: u32,
    slow: u32,
    failure_rate_percent: f64,
    slow_call_rate_percent: f64,
    consecutive_failures: u32,
    admitted_percent: f64,
    refused: u64,
    late_results: u64,
    next_change_in_seconds: Option<f64>,
    not_closed_for_seconds: Option<f64>,
}

pub(in crate::admin) fn breakers(state: &State, now: Instant) -> Vec<BreakerView> {
    state
        .active_policy
        .load()
        .breakers
        .iter()
        .map(|state| breaker(state, now))
        .collect()
}

pub(in crate::admin) fn breaker(breaker: &Arc<BreakerState>, now: Instant) -> BreakerView {
    let (snapshot, breaker_mode) = breaker.snapshot(now);
    BreakerView {
        name: breaker.name().to_string(),
        mode: breaker_mode.name(),
        state: snapshot.state.label(),
        in_state_seconds: now.saturating_duration_since(snapshot.since).as_secs_f64(),
        calls: snapshot.counts.total(),
        failed: snapshot.counts.failures,
        slow: snapshot.counts.slow_calls,
        failure_rate_percent: snapshot.counts.failure_rate().percent(),
        slow_call_rate_percent: snapshot.counts.slow_call_rate().percent(),
        consecutive_failures: snapshot.consecutive_failures,
        admitted_percent: snapshot.admitted_ratio.percent(),
        refused: snapshot.rejected_calls,
        late_results: snapshot.late_results,
        next_change_in_seconds: snapshot
            .deadline
            .map(|at| at.saturating_duration_since(now).as_secs_f64()),
        not_closed_for_seconds: snapshot
            .tripped_since
            .map(|at| now.saturating_duration_since(at).as_secs_f64()),
    }
}

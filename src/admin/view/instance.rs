//! The status of the instance: its lifecycle, its load and its policies.

use std::time::Instant;

use serde::Serialize;

use crate::{
    resilience::{
        capacity::{CapacityForecast, CapacityVerdict, ObservedLoad},
        lifecycle::Stage,
    },
    state::State,
};

#[derive(Serialize)]
pub(in crate::admin) struct StatusView {
    version: &'static str,
    /// `starting`, `serving`, `draining` or `drained`.
    lifecycle: &'static str,
    ready: bool,
    uptime_seconds: u64,
    in_flight: usize,
    /// Requests from clients to the app.
    in_flight_inbound: usize,
    /// Requests from the app to other services.
    in_flight_outbound: usize,
    capacity: CapacityView,
    policy: PolicyStatusView,
    listeners: Vec<String>,
}

/// Recent load, and the forecast of the load on the other replicas after this instance has drained.
#[derive(Serialize)]
pub(in crate::admin) struct CapacityView {
    /// `enough`, `too_little`, `alone`, `unknown_replicas` or `unknown_limit`.
    verdict: &'static str,
    replicas_staying: Option<u32>,
    staying_percent: Option<f64>,
    /// Highest number of concurrent inbound requests of this instance in the last ten seconds.
    peak_in_flight: u32,
    requests_per_second: f64,
    /// Maximum number of requests in flight at one replica, from its inbound concurrency limits.
    limit: Option<u32>,
    /// Expected requests in flight at each remaining replica, at the observed peak.
    in_flight_each: Option<f64>,
    requests_per_second_each: Option<f64>,
    requests_per_second_limit_each: Option<f64>,
}

#[derive(Serialize)]
struct PolicyStatusView {
    generation: u64,
    hash: String,
    /// `applied`, or `refused` if the newest policies are invalid; `faults` then lists the reasons.
    last_result: &'static str,
    faults: Vec<String>,
}

pub(in crate::admin) fn status(state: &State, now: Instant) -> StatusView {
    let active_policy = state.active_policy.load();
    let lifecycle = &state.lifecycle;
    let current = lifecycle.policy_current();
    let load = state.drain.instance_load();
    let (present, forecast) = state.forecast_capacity(now);
    let stage = match (state.drain.stage(), lifecycle.has_started()) {
        (Stage::Drained | Stage::Terminated, _) => "drained",
        (Stage::Announcing | Stage::AwaitingQuiet | Stage::ClosingStreams, _) => "draining",
        (Stage::Serving, true) => "serving",
        (Stage::Serving, false) => "starting",
    };
    StatusView {
        version: env!("CARGO_PKG_VERSION"),
        lifecycle: stage,
        ready: lifecycle.is_ready(),
        uptime_seconds: now
            .saturating_duration_since(lifecycle.created_at())
            .as_secs(),
        in_flight: state.drain.in_flight(),
        in_flight_inbound: load.inbound.in_flight,
        in_flight_outbound: load.outbound.in_flight,
        capacity: capacity(&present, &forecast),
        policy: PolicyStatusView {
            generation: active_policy.generation,
            hash: active_policy.snapshot.hash.clone(),
            last_result: if current.is_ok() {
                "applied"
            } else {
                "refused"
            },
            faults: current
                .err()
                .map(|faults| faults.lines().map(str::to_owned).collect())
                .unwrap_or_default(),
        },
        listeners: active_policy
            .snapshot
            .listeners
            .iter()
            .map(|listener| format!("{} {}", listener.name, listener.address))
            .collect(),
    }
}

/// Converts the observed load and its forecast into the view; infinite numbers become absent.
pub(in crate::admin) fn capacity(
    present: &ObservedLoad,
    forecast: &CapacityForecast,
) -> CapacityView {
    let finite = |number: f64| number.is_finite().then_some(number);
    CapacityView {
        verdict: match forecast.verdict {
            CapacityVerdict::UnknownReplicas => "unknown_replicas",
            CapacityVerdict::NoOtherReplica => "alone",
            CapacityVerdict::UnknownLimit => "unknown_limit",
            CapacityVerdict::Sufficient => "enough",
            CapacityVerdict::Insufficient => "too_little",
        },
        replicas_staying: forecast.remaining_replicas,
        staying_percent: forecast
            .remaining_replicas
            .map(|_| forecast.remaining_capacity * 100.0),
        peak_in_flight: present.peak_in_flight,
        requests_per_second: present.requests_per_second,
        limit: present.limit,
        in_flight_each: finite(forecast.in_flight_per_replica),
        requests_per_second_each: finite(forecast.requests_per_second_per_replica),
        requests_per_second_limit_each: forecast
            .max_requests_per_second_per_replica
            .and_then(finite),
    }
}

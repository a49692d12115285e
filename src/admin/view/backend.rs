//! The backends with their endpoints.

use std::time::Instant;

use serde::Serialize;

use crate::{
    policy::snapshot::LoadBalancerSpec,
    resilience::outlier::EjectionState,
    state::{State, topology::backend::BackendState},
    telemetry::label::Label,
};

#[derive(Serialize)]
pub(in crate::admin) struct BackendView {
    name: String,
    connections: u32,
    health_ignored: bool,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct EndpointView {
    address: String,
    health: &'static str,
    last_check: String,
    in_flight: u32,
    weight: u32,
    zone: Option<String>,
    priority: u32,
    /// Remaining time in which the endpoint gets no new requests, because it announced its drain.
    left_alone_seconds: Option<f64>,
    /// Share of its weight that the endpoint currently gets during warm-up, in `0.0..=100.0`.
    warm_percent: f64,
    /// `in`, `ejected for 12.3 s` or `probation`.
    outlier: String,
    /// Latency estimate of the PeakEwma load balancer; absent for other load balancers.
    latency_ms: Option<f64>,
}

pub(in crate::admin) fn backends(state: &State, now: Instant) -> Vec<BackendView> {
    let active_policy = state.active_policy.load();
    let endpoints = |backend: &BackendState| {
        let pairs = backend.endpoints.iter().zip(&backend.endpoint_specs);
        pairs
            .map(|(endpoint, endpoint_spec)| EndpointView {
                address: endpoint.label.to_string(),
                health: endpoint.health().label(),
                last_check: endpoint.check_summary().1,
                in_flight: endpoint.in_flight(),
                weight: endpoint_spec.weight.get(),
                zone: endpoint_spec.zone.as_deref().map(str::to_owned),
                priority: endpoint_spec.priority,
                left_alone_seconds: endpoint
                    .draining_until()
                    .map(|until| until.saturating_duration_since(now).as_secs_f64()),
                warm_percent: endpoint.warm_up_factor(backend.spec.warm_up.as_ref(), now) * 100.0,
                outlier: ejection_state_name(&endpoint.ejection_state(), now),
                latency_ms: matches!(backend.spec.load_balancer, LoadBalancerSpec::PeakEwma)
                    .then(|| endpoint.estimated_latency(now).as_secs_f64() * 1e3),
            })
            .collect()
    };
    active_policy
        .backends
        .iter()
        .map(|backend| BackendView {
            name: backend.spec.name.to_string(),
            connections: backend.counters.connections(),
            health_ignored: backend.is_panicking(),
            endpoints: endpoints(backend),
        })
        .collect()
}

fn ejection_state_name(standing: &EjectionState, now: Instant) -> String {
    match standing {
        EjectionState::NotEjected => "in".to_owned(),
        EjectionState::Ejected { until } => format!(
            "ejected for {:.1} s",
            until.saturating_duration_since(now).as_secs_f64()
        ),
        EjectionState::Probation { .. } => "probation".to_owned(),
    }
}

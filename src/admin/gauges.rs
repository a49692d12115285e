//! The metrics that are read from the state on each scrape. To count them as they change would
//! cost the request path more.

#![expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating point, and these counts are far below 2^53"
)]

use std::time::Instant;

use crate::{
    resilience::{health::Health, outlier::EjectionState},
    state::{State, active_policy::ActivePolicy, topology::backend::BackendState},
    telemetry::{label::Label, metric_names as name, metrics::Metrics},
};

/// Sets the gauges, and brings the counters up to date whose source counts by itself.
pub(super) fn record(state: &State, now: Instant) {
    let active_policy = state.active_policy.load();
    let metrics = &state.telemetry.metrics;
    record_instance(state, metrics);
    for backend in &active_policy.backends {
        record_backend(backend, metrics);
    }
    record_limits(&active_policy, metrics, now);
    record_rate_limits(&active_policy, metrics);
    for cache in &active_policy.policy_states.stale_cache {
        let (responses, bytes) = cache.size();
        let labels = [("store", &**cache.name())];
        metrics
            .gauge(name::STALE_ADDRESSES, &labels)
            .set(responses as f64);
        metrics.gauge(name::STALE_BYTES, &labels).set(bytes as f64);
    }
}

fn record_instance(state: &State, metrics: &Metrics) {
    metrics
        .gauge(name::IN_FLIGHT, &[])
        .set(state.drain.in_flight() as f64);
    metrics
        .counter(name::ACCESS_LOG_DROPPED, &[])
        .absolute(state.telemetry.access_log.dropped_lines());
    for (listener, connections) in state.lifecycle.connections() {
        metrics
            .gauge(name::CONNECTIONS, &[("listener", &listener)])
            .set(f64::from(connections));
    }
    let memory = &state.memory;
    for (gauge, value) in [
        (name::MEMORY_BUDGET, memory.budget_bytes() as f64),
        (name::MEMORY_USED, memory.used_bytes() as f64),
        (name::MEMORY_LEVEL, f64::from(memory.level() as u8)),
    ] {
        metrics.gauge(gauge, &[]).set(value);
    }
    metrics
        .gauge(name::PROTECTION_LEVEL, &[])
        .set(f64::from(state.protection.level() as u8));
    for (signal, value, _) in state.protection.signal_readings() {
        metrics
            .gauge(name::PROTECTION_SIGNAL, &[("signal", signal.label())])
            .set(value);
    }
}

fn record_backend(backend: &BackendState, metrics: &Metrics) {
    let labels = [("backend", &*backend.spec.name)];
    metrics
        .gauge(name::BACKEND_CONNECTIONS, &labels)
        .set(f64::from(backend.counters.connections()));
    for health in [Health::Unknown, Health::Healthy, Health::Unhealthy] {
        let endpoints = backend.endpoints.iter();
        let count = endpoints
            .filter(|endpoint| endpoint.health() == health)
            .count();
        let health_labels = [labels[0], ("health", health.label())];
        metrics
            .gauge(name::ENDPOINTS, &health_labels)
            .set(count as f64);
    }
    let endpoints = backend.endpoints.iter();
    let ejected = endpoints
        .filter(|endpoint| endpoint.ejection_state() != EjectionState::NotEjected)
        .count();
    metrics
        .gauge(name::ENDPOINTS_EJECTED, &labels)
        .set(ejected as f64);
    metrics
        .gauge(name::ENDPOINTS_AVAILABLE, &labels)
        .set(backend.available_count() as f64);
}

fn record_limits(active_policy: &ActivePolicy, metrics: &Metrics, now: Instant) {
    for limit in &active_policy.policy_states.concurrency_limit {
        let snapshot = limit.snapshot();
        let labels = [("limit", &**limit.name())];
        let set = |gauge, value: u32| metrics.gauge(gauge, &labels).set(f64::from(value));
        set(name::LIMIT_IN_FLIGHT, snapshot.in_flight);
        set(name::LIMIT_MAX, snapshot.config.max_in_flight.get());
        set(name::LIMIT_PENDING, snapshot.pending);
        if let Some((adaptive, _)) = snapshot.adaptive {
            set(name::LIMIT_ADAPTIVE, adaptive);
        }
    }
    for admission in &active_policy.policy_states.admission_control {
        metrics
            .gauge(
                name::ADMISSION_REJECTION,
                &[("admission", admission.name())],
            )
            .set(admission.snapshot(now).1.value());
    }
    for budget in &active_policy.retry_budgets {
        metrics
            .gauge(name::RETRY_BUDGET, &[("budget", budget.name())])
            .set(f64::from(budget.remaining(now)));
    }
}

fn record_rate_limits(active_policy: &ActivePolicy, metrics: &Metrics) {
    let routes = active_policy.routes.iter();
    for limit in routes.flat_map(|route| &route.rate_limits) {
        let labels = [("rule", &**limit.name())];
        let usage = limit.take_unreported_usage();
        metrics
            .gauge(name::RATE_LIMIT_KEYS, &labels)
            .set(usage.keys as f64);
        metrics
            .gauge(name::RATE_LIMIT_INSTANCES, &labels)
            .set(f64::from(limit.instances()));
        for (counter, count) in [
            (name::RATE_LIMIT_OVERFLOW, usage.overflowed_requests),
            (name::RATE_LIMIT_DELAYED, usage.delayed_requests),
            (name::RATE_LIMIT_INVALID_COSTS, usage.invalid_costs),
        ] {
            metrics.counter(counter, &labels).increment(count);
        }
    }
}

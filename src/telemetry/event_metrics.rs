//! Decides which counters and gauges an event changes.
//!
//! The module does not know why an event occurred. Metrics that no event changes are updated
//! elsewhere.

use crate::telemetry::{
    event::Event,
    label::Label,
    metric_names as name,
    metrics::{Metrics, to_gauge},
};

/// Updates the metrics that follow from an event. Most events change none.
pub(super) fn record(metrics: &Metrics, event: &Event) {
    match event {
        Event::PolicyApplied { generation, .. } => {
            increment(metrics, name::POLICY_RELOADS, &[("result", "applied")]);
            #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 reloads")]
            metrics
                .gauge(name::POLICY_GENERATION, &[])
                .set(*generation as f64);
            metrics.gauge(name::POLICY_CURRENT, &[]).set(1.0);
        }
        Event::PolicyRestored { .. } => metrics.gauge(name::POLICY_CURRENT, &[]).set(1.0),
        Event::PolicyRefused { .. } => {
            increment(metrics, name::POLICY_RELOADS, &[("result", "refused")]);
            metrics.gauge(name::POLICY_CURRENT, &[]).set(0.0);
        }
        Event::BreakerChanged {
            breaker,
            transition,
        } => {
            let labels = [("breaker", &**breaker), ("to", transition.to.label())];
            increment(metrics, name::BREAKER_TRANSITIONS, &labels);
            metrics.set_breaker_state(breaker, transition.to);
        }
        Event::EndpointDraining { backend, .. } => {
            increment(
                metrics,
                name::ENDPOINTS_MARKED_DRAINING,
                &[("backend", backend)],
            );
        }
        Event::HealthChanged {
            backend, health, ..
        } => {
            let labels = [("backend", &**backend), ("to", health.label())];
            increment(metrics, name::HEALTH_CHANGES, &labels);
        }
        Event::ReadinessChanged { is_ready, .. } => {
            metrics.gauge(name::READY, &[]).set(to_gauge(*is_ready));
        }
        Event::DrainStarted { .. } => metrics.gauge(name::DRAINING, &[]).set(1.0),
        Event::RecoveryActed {
            recovery,
            action,
            is_shadow,
            result,
            ..
        } => {
            let result = match result {
                _ if *is_shadow => "shadow",
                Ok(_) => "done",
                Err(_) => "failed",
            };
            record_recovery(metrics, recovery, action, result);
        }
        Event::RecoveryCapped { recovery } => record_recovery(metrics, recovery, "none", "capped"),
        Event::EndpointEjected {
            backend,
            cause,
            is_shadow: false,
            ..
        } => {
            let labels = [("backend", &**backend), ("cause", cause.label())];
            increment(metrics, name::EJECTIONS, &labels);
        }
        _ => {}
    }
}

fn increment(metrics: &Metrics, name: &'static str, labels: &[(&'static str, &str)]) {
    metrics.counter(name, labels).increment(1);
}

fn record_recovery(metrics: &Metrics, recovery: &str, action: &str, result: &str) {
    let labels = [
        ("recovery", recovery),
        ("action", action),
        ("result", result),
    ];
    increment(metrics, name::RECOVERY_ACTIONS, &labels);
}

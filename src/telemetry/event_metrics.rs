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
            set_policy_generation(metrics, *generation);
            set_flag(metrics, name::POLICY_CURRENT, true);
        }
        Event::PolicyRestored { .. } => set_flag(metrics, name::POLICY_CURRENT, true),
        Event::PolicyRefused { .. } => {
            increment(metrics, name::POLICY_RELOADS, &[("result", "refused")]);
            set_flag(metrics, name::POLICY_CURRENT, false);
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
        Event::ReadinessChanged { is_ready, .. } => set_flag(metrics, name::READY, *is_ready),
        Event::DrainStarted { .. } => set_flag(metrics, name::DRAINING, true),
        Event::RecoveryActed {
            recovery,
            action,
            is_shadow,
            result,
            ..
        } => record_recovery(
            metrics,
            recovery,
            action,
            recovery_result(result, *is_shadow),
        ),
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

/// Sets a gauge without labels to 1 or 0.
fn set_flag(metrics: &Metrics, name: &'static str, is_set: bool) {
    metrics.gauge(name, &[]).set(to_gauge(is_set));
}

fn set_policy_generation(metrics: &Metrics, generation: u64) {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 reloads")]
    metrics
        .gauge(name::POLICY_GENERATION, &[])
        .set(generation as f64);
}

/// Returns the metric label for the result of a recovery action. In shadow mode it is never
/// executed.
fn recovery_result(result: &Result<String, String>, is_shadow: bool) -> &'static str {
    match result {
        _ if is_shadow => "shadow",
        Ok(_) => "done",
        Err(_) => "failed",
    }
}

fn record_recovery(metrics: &Metrics, recovery: &str, action: &str, result: &str) {
    let labels = [
        ("recovery", recovery),
        ("action", action),
        ("result", result),
    ];
    increment(metrics, name::RECOVERY_ACTIONS, &labels);
}

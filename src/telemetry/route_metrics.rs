//! Counts the requests, rejections and degradations of one route.
//!
//! This module maps each outcome to a counter. It does not know how an outcome is decided.

use std::sync::OnceLock;

use metrics::{Counter, Histogram};

use crate::telemetry::{
    label::{LazyLabelledCounters, counted_labels},
    metric_names as name,
    metrics::Metrics,
    reason::Reason,
};

counted_labels! {
    /// Kind of response that replaced a failure.
    DegradationOutcome {
        /// A cached response replaced the failure.
        Stale = "stale",
        /// The fixed response of the fallback replaced the failure.
        Response = "response",
        /// The response of a fallback backend replaced the failure.
        Backend = "backend",
        /// The failure was not replaced, because the policy is in shadow mode.
        Shadow = "shadow",
    }
}

/// Handles of the metrics of one route. A counter by reason, degradation or gRPC status is
/// registered at its first occurrence.
#[derive(Debug)]
pub struct RouteMetrics {
    requests_by_status_class: [Counter; 6],
    duration_seconds: Histogram,
    refusals: LazyLabelledCounters<Reason>,
    shadow_refusals: LazyLabelledCounters<Reason>,
    degradations: LazyLabelledCounters<DegradationOutcome>,
    /// Counters by gRPC status, from 0 to 16.
    grpc_calls_by_status: [OnceLock<Counter>; 17],
    route: String,
}

impl RouteMetrics {
    /// Registers the metrics of a route. `direction` is a label, `inbound` or `outbound`.
    #[must_use]
    pub fn new(metrics: &Metrics, route: &str, direction: &str) -> Self {
        let class_counter = |class: &str| {
            let labels = [
                ("route", route),
                ("direction", direction),
                ("status", class),
            ];
            metrics.counter(name::REQUESTS, &labels)
        };
        let labels = [("route", route), ("direction", direction)];
        Self {
            requests_by_status_class: ["none", "1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(class_counter),
            duration_seconds: metrics.histogram(name::REQUEST_SECONDS, &labels),
            refusals: LazyLabelledCounters::default(),
            shadow_refusals: LazyLabelledCounters::default(),
            degradations: LazyLabelledCounters::default(),
            grpc_calls_by_status: std::array::from_fn(|_| OnceLock::new()),
            route: route.to_owned(),
        }
    }

    /// Counts a request that ended, and records its duration in seconds. Status 0 means that no
    /// response was sent.
    pub fn record_request(&self, status: u16, seconds: f64) {
        self.requests_by_status_class[usize::from(status / 100).min(5)].increment(1);
        self.duration_seconds.record(seconds);
    }

    /// Counts a gRPC call that ended. A status above 16 is not counted.
    pub fn record_grpc_call(&self, metrics: &Metrics, status: u8) {
        let register = || {
            let labels = [("route", &*self.route), ("code", &*status.to_string())];
            metrics.counter(name::GRPC_REQUESTS, &labels)
        };
        if let Some(slot) = self.grpc_calls_by_status.get(usize::from(status)) {
            slot.get_or_init(register).increment(1);
        }
    }

    /// Counts a response that the sidecar created, or one that did not reach the client completely.
    pub fn record_refusal(&self, metrics: &Metrics, reason: Reason) {
        self.refusals.increment(reason, |label| {
            let labels = [("route", &*self.route), ("reason", label)];
            metrics.counter(name::REFUSALS, &labels)
        });
    }

    /// Counts a rejection that shadow mode did not enforce.
    pub fn record_shadow_refusal(&self, metrics: &Metrics, reason: Reason) {
        self.shadow_refusals.increment(reason, |label| {
            let labels = [("route", &*self.route), ("reason", label)];
            metrics.counter(name::SHADOW_REFUSALS, &labels)
        });
    }

    /// Counts a failure that another response replaced, or would have without shadow mode.
    pub fn record_degradation(&self, metrics: &Metrics, outcome: DegradationOutcome) {
        self.degradations.increment(outcome, |label| {
            let labels = [("route", &*self.route), ("with", label)];
            metrics.counter(name::DEGRADED, &labels)
        });
    }
}

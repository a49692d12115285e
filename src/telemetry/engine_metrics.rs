//! The metrics of the engine that keeps the shared rate limits.

use metrics::Gauge;

use crate::telemetry::{
    label::{LabelledCounters, counted_labels},
    metric_names as name,
    metrics::{Metrics, to_gauge},
};

counted_labels! {
    /// How the engine served one bucket.
    EngineOutcome {
        /// It granted the tokens.
        Granted = "granted",
        /// It did not grant the tokens.
        Refused = "refused",
        /// It charged the cost of a response.
        Charged = "charged",
        /// It did not respond in time.
        Timeout = "timeout",
        /// It responded with an error.
        Error = "error",
        /// It has no connection.
        Unavailable = "unavailable",
        /// It was not used, because it has failed too often.
        Suspended = "suspended",
    }
}

/// The handles of the engine's metrics.
#[derive(Debug)]
pub struct EngineMetrics {
    requests: LabelledCounters<EngineOutcome>,
    connected: Gauge,
}

impl EngineMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            requests: LabelledCounters::new(|outcome| {
                metrics.counter(name::ENGINE_REQUESTS, &[("outcome", outcome)])
            }),
            connected: metrics.gauge(name::ENGINE_CONNECTED, &[]),
        }
    }

    /// Counts a bucket that the engine was sent.
    pub fn record_request(&self, outcome: EngineOutcome) {
        self.requests.increment(outcome);
    }

    /// Shows whether the engine is connected; `None` withdraws the gauge.
    pub fn set_connected(&self, is_connected: Option<bool>) {
        self.connected.set(is_connected.map_or(f64::NAN, to_gauge));
    }
}

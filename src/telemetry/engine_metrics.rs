//! Counts the requests to the remote engine of the global rate limits, and shows its connection.
//!
//! This module maps each outcome to a counter. It does not know the engine or its protocol.

use metrics::Gauge;

use crate::telemetry::{
    label::{LabelledCounters, counted_labels},
    metric_names as name,
    metrics::{Metrics, to_gauge},
};

counted_labels! {
    /// Outcome of a request to the engine for one bucket.
    EngineOutcome {
        /// The engine granted the tokens.
        Granted = "granted",
        /// The engine did not grant the tokens.
        Refused = "refused",
        /// The engine charged the cost of a response.
        Charged = "charged",
        /// The engine did not respond in time.
        Timeout = "timeout",
        /// The engine responded with an error, or its connection failed.
        Error = "error",
        /// The engine had no connection, or the queue of charges was full.
        Unavailable = "unavailable",
        /// The engine was not queried, because its circuit breaker rejected the request.
        Suspended = "suspended",
    }
}

/// Handles of the metrics of the engine.
#[derive(Debug)]
pub struct EngineMetrics {
    requests: LabelledCounters<EngineOutcome>,
    connected: Gauge,
}

impl EngineMetrics {
    /// Registers the metrics of the engine, with all counters at zero.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            requests: LabelledCounters::new(|outcome| {
                metrics.counter(name::ENGINE_REQUESTS, &[("outcome", outcome)])
            }),
            connected: metrics.gauge(name::ENGINE_CONNECTED, &[]),
        }
    }

    /// Counts the outcome of a request for one bucket.
    pub fn record_request(&self, outcome: EngineOutcome) {
        self.requests.increment(outcome);
    }

    /// Sets the connection gauge to 1 if the engine is connected, else to 0. `None` sets it to NaN,
    /// because no engine is configured.
    pub fn set_connected(&self, is_connected: Option<bool>) {
        self.connected.set(is_connected.map_or(f64::NAN, to_gauge));
    }
}

//! The handles of the engine that keeps the limits of all instances.

use metrics::{Counter, Gauge};

use crate::telemetry::metrics::{Metrics, name};

/// How asking the engine went, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineOutcome {
    /// It gave the tokens.
    Granted,
    /// It did not.
    Refused,
    /// It took what an answer was worth.
    Charged,
    /// It said nothing in time.
    Timeout,
    /// It said something else.
    Error,
    /// There is no connection to it.
    Unavailable,
    /// It was not asked, because it has failed too often.
    Suspended,
}

/// The handles.
#[derive(Debug)]
pub struct EngineMetrics {
    requests_by_outcome: [Counter; 7],
    connected_gauge: Gauge,
}

impl EngineMetrics {
    /// Makes the handles.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let request_counter =
            |outcome: &str| metrics.counter(name::ENGINE_REQUESTS, &[("outcome", outcome)]);
        Self {
            requests_by_outcome: [
                "granted",
                "refused",
                "charged",
                "timeout",
                "error",
                "unavailable",
                "suspended",
            ]
            .map(request_counter),
            connected_gauge: metrics.gauge(name::ENGINE_CONNECTED, &[]),
        }
    }

    /// Counts a bucket that was asked for.
    pub fn record_request(&self, outcome: EngineOutcome) {
        let index = match outcome {
            EngineOutcome::Granted => 0,
            EngineOutcome::Refused => 1,
            EngineOutcome::Charged => 2,
            EngineOutcome::Timeout => 3,
            EngineOutcome::Error => 4,
            EngineOutcome::Unavailable => 5,
            EngineOutcome::Suspended => 6,
        };
        self.requests_by_outcome[index].increment(1);
    }

    /// Shows whether there is a connection; `None` if there is to be none.
    pub fn set_connected(&self, is_connected: Option<bool>) {
        self.connected_gauge
            .set(is_connected.map_or(f64::NAN, |is_connected| f64::from(u8::from(is_connected))));
    }
}

//! The handles of the engine that keeps the limits of all instances.

use metrics::{Counter, Gauge};

use super::metrics::{Metrics, name};

/// How asking the engine went, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineOutcome {
    /// It gave the tokens.
    Granted,
    /// It did not.
    Refused,
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
    asked: [Counter; 6],
    connected: Gauge,
}

impl EngineMetrics {
    /// Makes the handles.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let asked = |outcome: &str| metrics.counter(name::ENGINE_ASKED, &[("outcome", outcome)]);
        Self { asked: ["granted", "refused", "timeout", "error", "unavailable", "suspended"].map(asked), connected: metrics.gauge(name::ENGINE_CONNECTED, &[]) }
    }

    /// Counts a bucket that was asked for.
    pub fn asked(&self, outcome: EngineOutcome) {
        let index = match outcome {
            EngineOutcome::Granted => 0,
            EngineOutcome::Refused => 1,
            EngineOutcome::Timeout => 2,
            EngineOutcome::Error => 3,
            EngineOutcome::Unavailable => 4,
            EngineOutcome::Suspended => 5,
        };
        self.asked[index].increment(1);
    }

    /// Shows whether there is a connection; `None` if there is to be none.
    pub fn connected(&self, is_connected: Option<bool>) {
        self.connected.set(is_connected.map_or(f64::NAN, |is_connected| f64::from(u8::from(is_connected))));
    }
}

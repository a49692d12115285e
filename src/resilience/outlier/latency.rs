//! What latencies say about an endpoint among its peers.

use std::time::Duration;

use crate::resilience::{latency_histogram::LatencyHistogram, outlier::EndpointResult};

/// Answers that are enough to judge an endpoint's latency by its 90th percentile.
const MIN_SAMPLES_FOR_P90: u32 = 10;

/// Answers that are enough to judge it by its median: a balancer that sees that an endpoint is slow hardly asks it.
const MIN_SAMPLES_FOR_MEDIAN: u32 = 3;

/// A difference that nobody feels is no reason to eject, whatever its factor.
pub(super) const MIN_LATENCY_DIFFERENCE: Duration = Duration::from_millis(25);

impl LatencyHistogram {
    /// Counts what a result says. How quickly an endpoint fails or refuses says nothing about how fast it works; one that was not
    /// waited for takes at least as long as it was.
    pub fn record_result(&mut self, result: EndpointResult, took: Duration) {
        match result {
            EndpointResult::Success => self.record(took),
            EndpointResult::Cancelled if took >= MIN_LATENCY_DIFFERENCE => self.record(took),
            _ => {}
        }
    }

    /// Whether there are enough for a judgement that needs no more of them.
    #[must_use]
    pub fn has_enough_samples(&self) -> bool {
        self.total() >= MIN_SAMPLES_FOR_P90
    }

    /// What an endpoint is compared by: the 90th percentile, or of few the median; of fewer nothing.
    #[must_use]
    pub fn comparison_latency(&self) -> Option<Duration> {
        match self.total() {
            MIN_SAMPLES_FOR_P90.. => Some(self.percentile(0.9)),
            MIN_SAMPLES_FOR_MEDIAN.. => Some(self.percentile(0.5)),
            _ => None,
        }
    }
}

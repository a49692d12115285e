//! The latency of an endpoint for the comparison with its peers.
//!
//! This module decides which results count as latencies, and which percentile of them is
//! compared. It does not know the peers.

use std::time::Duration;

use crate::resilience::{
    latency_histogram::LatencyHistogram, outlier::endpoint_result::EndpointResult,
};

/// Minimum number of latencies for a comparison by the 90th percentile.
const MIN_SAMPLES_FOR_P90: u32 = 10;

/// Minimum number of latencies for a comparison by the median. A balancer that detects a slow
/// endpoint sends it few requests.
const MIN_SAMPLES_FOR_MEDIAN: u32 = 3;

/// Minimum difference to the peers for an ejection, whatever the factor. Clients do not notice
/// a smaller one.
pub(super) const MIN_LATENCY_DIFFERENCE: Duration = Duration::from_millis(25);

impl LatencyHistogram {
    /// Records the latency of a result, if the result says something about latency.
    ///
    /// A failed or throttled result does not: it can be fast on a slow endpoint. A cancelled
    /// result counts if it waited for at least 25 ms, because the latency is at least that
    /// wait.
    pub fn record_result(&mut self, result: EndpointResult, took: Duration) {
        match result {
            EndpointResult::Success => self.record(took),
            EndpointResult::Cancelled if took >= MIN_LATENCY_DIFFERENCE => self.record(took),
            _ => {}
        }
    }

    /// Returns whether there are enough latencies for the 90th percentile, which are 10.
    #[must_use]
    pub fn has_enough_samples(&self) -> bool {
        self.total() >= MIN_SAMPLES_FOR_P90
    }

    /// Returns the latency by which an endpoint is compared.
    ///
    /// This is the 90th percentile of at least 10 latencies, or the median of at least 3. With
    /// fewer it is `None`.
    #[must_use]
    pub fn comparison_latency(&self) -> Option<Duration> {
        match self.total() {
            MIN_SAMPLES_FOR_P90.. => Some(self.percentile(0.9)),
            MIN_SAMPLES_FOR_MEDIAN.. => Some(self.percentile(0.5)),
            _ => None,
        }
    }
}

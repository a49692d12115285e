//! What latencies say about an endpoint among its peers.

use std::time::Duration;

use super::Attempted;
use crate::resilience::latencies::Latencies;

/// Answers that are enough to judge an endpoint's latency by its 90th percentile.
const ENOUGH: u32 = 10;

/// Answers that are enough to judge it by its median: a balancer that sees that an endpoint is slow hardly asks it.
const FEW: u32 = 3;

/// A difference that nobody feels is no reason to eject, whatever its factor.
pub(super) const NOTICEABLE: Duration = Duration::from_millis(25);

impl Latencies {
    /// Counts what a result says. How quickly an endpoint fails or refuses says nothing about how fast it works; one that was not
    /// waited for takes at least as long as it was.
    pub fn observe(&mut self, result: Attempted, took: Duration) {
        match result {
            Attempted::Success => self.add(took),
            Attempted::Cancelled if took >= NOTICEABLE => self.add(took),
            _ => {}
        }
    }

    /// Whether there are enough for a judgement that needs no more of them.
    #[must_use]
    pub fn are_enough(&self) -> bool {
        self.total() >= ENOUGH
    }

    /// What an endpoint is compared by: the 90th percentile, or of few the median; of fewer nothing.
    #[must_use]
    pub fn typical_worst(&self) -> Option<Duration> {
        match self.total() {
            ENOUGH.. => Some(self.percentile(0.9)),
            FEW.. => Some(self.percentile(0.5)),
            _ => None,
        }
    }
}

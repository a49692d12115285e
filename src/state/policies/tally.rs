//! A count that a counter metric is brought up to date from.

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of occurrences, and how many of them the metrics contain already.
#[derive(Debug, Default)]
pub struct Tally {
    total: AtomicU64,
    reported: AtomicU64,
}

impl Tally {
    /// Adds one occurrence to the total.
    pub fn record(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of occurrences.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Returns the number of occurrences since the last call. Concurrent callers share them.
    #[must_use]
    pub fn take_unreported(&self) -> u64 {
        let total = self.total();
        total.saturating_sub(self.reported.fetch_max(total, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;

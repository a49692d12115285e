//! Latencies, as a few counts.
//!
//! A count for each quarter of a doubling, from a sixteenth of a millisecond to two hours: a percentile is right to within a fifth
//! of its value, which is enough to tell three times as slow, and costs a quarter of a kilobyte and one addition per answer.

use std::time::Duration;

const BUCKETS: usize = 108;

/// The upper end of the first bucket, in microseconds.
const FIRST_BUCKET_MICROS: f64 = 62.5;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub struct LatencyHistogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
        }
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let index = bucket_index(latency);
        self.counts[index] = self.counts[index].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// Both together.
    #[must_use]
    pub fn merged(&self, others: &Self) -> Self {
        let counts =
            std::array::from_fn(|index| self.counts[index].saturating_add(others.counts[index]));
        Self {
            counts,
            total: self.total.saturating_add(others.total),
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// The latency that this share of them did not exceed, rounded up to the end of its bucket; nothing of nothing.
    #[must_use]
    pub fn percentile(&self, quantile: f64) -> Duration {
        let rank = (f64::from(self.total) * quantile.clamp(0.0, 1.0))
            .ceil()
            .max(1.0);
        let mut cumulative = 0_u32;
        for (index, count) in self.counts.iter().enumerate() {
            cumulative = cumulative.saturating_add(*count);
            if f64::from(cumulative) >= rank {
                return bucket_upper_bound(index);
            }
        }
        Duration::ZERO
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the buckets before"
)]
fn bucket_index(latency: Duration) -> usize {
    let quarters = (latency.as_secs_f64() * 1e6 / FIRST_BUCKET_MICROS).log2() * 4.0;
    quarters.ceil().clamp(0.0, (BUCKETS - 1) as f64) as usize
}

fn bucket_upper_bound(bucket: usize) -> Duration {
    Duration::from_secs_f64(FIRST_BUCKET_MICROS / 1e6 * (bucket as f64 / 4.0).exp2())
}

#[cfg(test)]
mod tests;

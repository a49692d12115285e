//! A latency histogram with a fixed number of buckets.
//!
//! Each doubling of the latency has four buckets, from 62.5 microseconds to about two hours. A
//! percentile is exact to within a fifth of its value, which is enough to detect a threefold
//! latency. A histogram takes less than half a kilobyte, and recording a latency takes two
//! additions. The module does not expire latencies; the caller replaces the histogram.

use std::time::Duration;

const BUCKETS: usize = 108;

/// Upper bound of the first bucket, in microseconds.
const FIRST_BUCKET_MICROS: f64 = 62.5;

/// Number of latencies per bucket, with their total.
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
    /// Records one latency. Latencies outside the buckets count in the outermost bucket.
    pub fn record(&mut self, latency: Duration) {
        let index = bucket_index(latency);
        self.counts[index] = self.counts[index].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// Returns a histogram with the latencies of both.
    #[must_use]
    pub fn merged(&self, others: &Self) -> Self {
        let counts =
            std::array::from_fn(|index| self.counts[index].saturating_add(others.counts[index]));
        Self {
            counts,
            total: self.total.saturating_add(others.total),
        }
    }

    /// Returns the number of recorded latencies.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Returns the latency that a share `quantile` of the latencies does not exceed.
    ///
    /// The result is rounded up to the upper bound of its bucket. It is zero if the histogram
    /// is empty.
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

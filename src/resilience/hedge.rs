//! Hedging: the delay after which a second attempt is sent before the first has failed.
//!
//! Most of a backend's tail latency is random: a pause, a busy neighbour or a lost packet. A
//! second attempt removes this tail at the cost of a few percent more load (Dean and Barroso,
//! "The Tail at Scale", 2013). The delay is the configured one, or the 95th percentile of the
//! latency of the backend. About one request in twenty is then sent twice.
//!
//! The percentile covers the last minute, in two halves. When the current half is complete, it
//! replaces the previous one. An attempt that lost to another one counts with its elapsed time.
//! Otherwise slow attempts would be missing, and the delay would decrease over time.
//!
//! The module does not send attempts, and does not know how many are in flight.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::resilience::latency_histogram::LatencyHistogram;

/// Minimum number of latencies for an estimate of the delay.
const MIN_SAMPLES: u32 = 50;

/// Quantile of the latency after which a second attempt is sent.
const DELAY_QUANTILE: f64 = 0.95;

/// Half of the time over which latencies are collected.
const HALF_WINDOW: Duration = Duration::from_secs(30);

/// Lower bound of an estimated delay, below which hedging would only add load.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// Number of attempts and delay between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgeConfig {
    /// Maximum number of attempts, including the first.
    pub max_attempts: NonZeroU32,
    /// Time before the next attempt; `None` derives it from the latency of the backend.
    pub delay: Option<Duration>,
}

/// Recent latencies of a backend, from which the delay is estimated.
#[derive(Debug, Clone)]
pub struct HedgeDelayEstimator {
    config: HedgeConfig,
    current: LatencyHistogram,
    previous: LatencyHistogram,
    rotated_at: Instant,
}

impl HedgeDelayEstimator {
    /// Creates an estimator without any latencies.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            config,
            current: LatencyHistogram::default(),
            previous: LatencyHistogram::default(),
            rotated_at: now,
        }
    }

    /// Returns the configuration that the estimator currently follows.
    #[must_use]
    pub fn config(&self) -> &HedgeConfig {
        &self.config
    }

    /// Applies a new configuration. The recorded latencies remain.
    pub fn reconfigure(&mut self, config: HedgeConfig) {
        self.config = config;
    }

    /// Records the latency of an attempt, or the elapsed time of one that lost.
    pub fn record_latency(&mut self, took: Duration, now: Instant) {
        self.rotate(now);
        self.current.record(took);
    }

    /// Returns the time before the next attempt, or `None` with too few latencies for an
    /// estimate.
    #[must_use]
    pub fn delay(&mut self, now: Instant) -> Option<Duration> {
        if self.config.delay.is_some() {
            return self.config.delay;
        }
        self.rotate(now);
        let seen = self.current.merged(&self.previous);
        (seen.total() >= MIN_SAMPLES).then(|| seen.percentile(DELAY_QUANTILE).max(MIN_DELAY))
    }

    fn rotate(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.rotated_at);
        if since < HALF_WINDOW {
            return;
        }
        self.previous = if since < HALF_WINDOW * 2 {
            std::mem::take(&mut self.current)
        } else {
            LatencyHistogram::default()
        };
        self.current = LatencyHistogram::default();
        self.rotated_at = now;
    }
}

#[cfg(test)]
mod tests;

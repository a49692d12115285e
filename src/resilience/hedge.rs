//! When a second request is worth making before the first has failed.
//!
//! The tail of a backend's latency is mostly bad luck: a pause, a busy neighbour, a lost packet. Asking once more when an answer is later
//! than nearly all are costs a few percent of load and removes the tail (Dean and Barroso, "The Tail at Scale", 2013). The delay is what
//! is written, or the 95th percentile of what the backend took, so that about one request in twenty is made twice.
//!
//! The percentile is that of the last minute, in two halves: the younger one fills, and when it is over it replaces the older one. An answer
//! that was not waited for, because another came first, counts with the time that it was waited for: else the slow would be forgotten and
//! the delay would creep down.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::resilience::latency_histogram::LatencyHistogram;

/// Answers of which a percentile says something.
pub const MIN_SAMPLES: u32 = 50;

/// How late is late.
const DELAY_QUANTILE: f64 = 0.95;

/// Half of the time that is looked back on.
const HALF_WINDOW: Duration = Duration::from_secs(30);

/// Below this a second request would only add load.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// How many, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgeConfig {
    /// Requests at most, with the first.
    pub max_attempts: NonZeroU32,
    /// How long to wait before the next; none means as long as nearly all answers take.
    pub delay: Option<Duration>,
}

/// What a backend took lately.
#[derive(Debug, Clone)]
pub struct HedgeDelayEstimator {
    config: HedgeConfig,
    current: LatencyHistogram,
    previous: LatencyHistogram,
    rotated_at: Instant,
}

impl HedgeDelayEstimator {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            config,
            current: LatencyHistogram::default(),
            previous: LatencyHistogram::default(),
            rotated_at: now,
        }
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &HedgeConfig {
        &self.config
    }

    /// Follows other numbers; what was seen stays true.
    pub fn reconfigure(&mut self, config: HedgeConfig) {
        self.config = config;
    }

    /// Takes note of what an answer took.
    pub fn record_latency(&mut self, took: Duration, now: Instant) {
        self.rotate(now);
        self.current.record(took);
    }

    /// How long to wait before the next request; none while too little is known.
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

//! How many retries a backend can take: a share of its requests, plus a floor.
//!
//! A limit per request multiplies load exactly when there is least to spare: three attempts each make an outage three times as
//! heavy. A budget bounds the whole instead. The rate form (a share of the requests of the last `interval`, and a floor per
//! second so that a quiet service may retry at all) is that of Finagle, Linkerd and Gateway API's GEP-3388; the form by
//! concurrency is one that users cannot size (istio/api#2734).
//!
//! A retry is allowed if either holds:
//! - retries in the last `interval` are below `share * requests` in the last `interval`, or
//! - retries in the last `floor_interval` are below `floor`.

use std::time::{Duration, Instant};

use crate::resilience::{ratio::Ratio, window::SlidingWindow};

/// The share, the floor, and what they are counted over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudgetConfig {
    /// Retries allowed as a share of the requests of `interval`.
    pub share: Ratio,
    /// What the share is counted over.
    pub interval: Duration,
    /// Retries always allowed in each `floor_interval`.
    pub floor: u32,
    /// What the floor is counted over.
    pub floor_interval: Duration,
}

impl Default for RetryBudgetConfig {
    /// 20 % of 10 s, and 10 a second (GEP-3388).
    fn default() -> Self {
        Self {
            share: Ratio::from_percent(20.0).expect("20 is a percentage"),
            interval: Duration::from_secs(10),
            floor: 10,
            floor_interval: Duration::from_secs(1),
        }
    }
}

/// The budget of one backend.
#[derive(Debug)]
pub struct BackendRetryBudget {
    config: RetryBudgetConfig,
    requests: SlidingWindow<u32>,
    retries: SlidingWindow<u32>,
    floor_retries: SlidingWindow<u32>,
}

impl BackendRetryBudget {
    /// Makes a budget that has seen nothing yet.
    #[must_use]
    pub fn new(config: RetryBudgetConfig, now: Instant) -> Self {
        Self {
            config,
            requests: SlidingWindow::new(config.interval, now),
            retries: SlidingWindow::new(config.interval, now),
            floor_retries: SlidingWindow::new(config.floor_interval, now),
        }
    }

    /// Counts a request, not its retries.
    pub fn deposit(&mut self, now: Instant) {
        self.requests.add(1, now);
    }

    /// Takes one retry out of the budget; `false` if there is none left.
    #[must_use]
    pub fn try_withdraw(&mut self, now: Instant) -> bool {
        if self.remaining(now) == 0 {
            return false;
        }
        self.retries.add(1, now);
        self.floor_retries.add(1, now);
        true
    }

    /// How many retries could be taken at once now.
    pub fn remaining(&mut self, now: Instant) -> u32 {
        let by_share = (f64::from(self.requests.total(now)) * self.config.share.value()).floor();
        // A product of a u32 and a ratio is within u32.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 <= by_share <= u32::MAX"
        )]
        let by_share = (by_share as u32).saturating_sub(self.retries.total(now));
        let by_floor = self
            .config
            .floor
            .saturating_sub(self.floor_retries.total(now));
        by_share.max(by_floor)
    }

    /// What the budget follows.
    #[must_use]
    pub fn config(&self) -> &RetryBudgetConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;

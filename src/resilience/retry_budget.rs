//! The retry budget of a backend: a share of its requests, plus a floor.
//!
//! A limit per request multiplies the load when capacity is lowest: three attempts per request
//! triple the load of an outage. A budget bounds the sum of all retries instead. The form by
//! rate is that of Finagle, Linkerd and Gateway API's GEP-3388. It consists of a share of the
//! recent requests, and of a floor so that a backend with few requests may retry at all. Users
//! cannot size the alternative form by concurrency (istio/api#2734).
//!
//! A retry is allowed if either holds:
//!
//! - retries in the last `interval` are below `share * requests` in the last `interval`, or
//! - retries in the last `floor_interval` are below `floor`.
//!
//! The module does not know why a request is retried.

use std::time::{Duration, Instant};

use crate::resilience::{ratio::Ratio, window::SlidingWindow};

/// Share and floor of a retry budget, and the windows over which they are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudgetConfig {
    /// Allowed retries, as a share of the requests in `interval`.
    pub share: Ratio,
    /// Length of the window for the share.
    pub interval: Duration,
    /// Number of retries that are always allowed in each `floor_interval`.
    pub floor: u32,
    /// Length of the window for the floor.
    pub floor_interval: Duration,
}

impl Default for RetryBudgetConfig {
    /// Returns 20 % of the requests of 10 s, and a floor of 10 per second (GEP-3388).
    fn default() -> Self {
        Self {
            share: Ratio::from_percent(20.0).expect("20 is a percentage"),
            interval: Duration::from_secs(10),
            floor: 10,
            floor_interval: Duration::from_secs(1),
        }
    }
}

/// Retry budget of one backend, with its recent requests and retries.
#[derive(Debug)]
pub struct BackendRetryBudget {
    config: RetryBudgetConfig,
    requests: SlidingWindow<u32>,
    retries: SlidingWindow<u32>,
    floor_retries: SlidingWindow<u32>,
}

impl BackendRetryBudget {
    /// Creates a budget without any requests or retries.
    #[must_use]
    pub fn new(config: RetryBudgetConfig, now: Instant) -> Self {
        Self {
            config,
            requests: SlidingWindow::new(config.interval, now),
            retries: SlidingWindow::new(config.interval, now),
            floor_retries: SlidingWindow::new(config.floor_interval, now),
        }
    }

    /// Counts a request. The caller does not count its retries here.
    pub fn deposit(&mut self, now: Instant) {
        self.requests.add(1, now);
    }

    /// Withdraws one retry from the budget and returns whether it is allowed.
    #[must_use]
    pub fn try_withdraw(&mut self, now: Instant) -> bool {
        if self.remaining(now) == 0 {
            return false;
        }
        self.retries.add(1, now);
        self.floor_retries.add(1, now);
        true
    }

    /// Returns the number of retries that are allowed at this moment.
    pub fn remaining(&mut self, now: Instant) -> u32 {
        let by_share = (f64::from(self.requests.total(now)) * self.config.share.value()).floor();
        // The product of a u32 and a ratio fits into a u32.
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

    /// Returns the configuration of the budget.
    #[must_use]
    pub fn config(&self) -> &RetryBudgetConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;

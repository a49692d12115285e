//! Admission control: the rejection of a share of calls while a backend fails too many of them.
//!
//! A circuit breaker rejects all calls or none. Admission control rejects a share of them
//! before they are sent. It is the client-side throttling of the SRE book ("Handling
//! Overload"), in the form of Envoy's `admission_control` filter. With `n` calls and `s`
//! successes in the window, and a minimum success rate `t`, the probability of a rejection is
//!
//! `p = ((n - s / t) / (n + 1)) ^ (1 / aggression)`, at least 0 and at most `max_rejection`.
//!
//! Rejected calls are not counted, because the counts describe the backend. Below a minimum
//! rate of calls none is rejected, because few calls prove little. The module does not know
//! which responses are successes. The caller classifies them.

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

use crate::resilience::{ratio::Ratio, window::SlidingWindow};

/// Configuration of admission control for one backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionConfig {
    /// Length of the window over which calls are counted.
    pub window: Duration,
    /// Success rate below which calls are rejected; above 0.
    pub min_success_rate: Ratio,
    /// Shape of the probability, above 0: at 1 it rises linearly, above 1 it rises earlier.
    pub aggression: f64,
    /// Calls per second below which no call is rejected.
    pub min_request_rate: u32,
    /// Maximum probability of a rejection.
    pub max_rejection: Ratio,
}

/// Number of calls in the window, and of the successes among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdmissionCounts {
    /// Number of all calls that were sent.
    pub total: u32,
    /// Number of successful calls.
    pub successes: u32,
}

impl AddAssign for AdmissionCounts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.successes += other.successes;
    }
}

impl SubAssign for AdmissionCounts {
    fn sub_assign(&mut self, other: Self) {
        self.total -= other.total;
        self.successes -= other.successes;
    }
}

/// Admission controller with the recent results of a backend.
#[derive(Debug, Clone)]
pub struct AdmissionController {
    config: AdmissionConfig,
    window: SlidingWindow<AdmissionCounts>,
}

impl AdmissionController {
    /// Creates a controller without any results.
    #[must_use]
    pub fn new(config: AdmissionConfig, now: Instant) -> Self {
        Self {
            config,
            window: SlidingWindow::new(config.window, now),
        }
    }

    /// Returns the configuration that the controller follows.
    #[must_use]
    pub fn config(&self) -> &AdmissionConfig {
        &self.config
    }

    /// Records the result of a call that was sent.
    pub fn record_result(&mut self, is_success: bool, now: Instant) {
        self.window.add(
            AdmissionCounts {
                total: 1,
                successes: u32::from(is_success),
            },
            now,
        );
    }

    /// Returns the counts of the window that ends at `now`.
    pub fn counts(&mut self, now: Instant) -> AdmissionCounts {
        self.window.total(now)
    }

    /// Returns the current probability of a rejection.
    pub fn rejection_probability(&mut self, now: Instant) -> Ratio {
        let AdmissionCounts { total, successes } = self.window.total(now);
        let total = f64::from(total);
        if total / self.config.window.as_secs_f64() < f64::from(self.config.min_request_rate) {
            return Ratio::ZERO;
        }
        let excess =
            (total - f64::from(successes) / self.config.min_success_rate.value()) / (total + 1.0);
        let probability = excess
            .max(0.0)
            .powf(self.config.aggression.recip())
            .min(self.config.max_rejection.value());
        Ratio::from_percent(probability * 100.0).unwrap_or(Ratio::ZERO)
    }

    /// Decides whether to admit a call; `random` is uniform in `0..1`.
    #[must_use]
    pub fn should_admit(&mut self, random: f64, now: Instant) -> bool {
        random >= self.rejection_probability(now).value()
    }
}

#[cfg(test)]
mod tests;

//! Refusing a share of calls before they are made, when the backend answers too few of them well.
//!
//! A breaker says all or nothing; this says how many. It is the client-side throttling of the SRE book ("Handling Overload"), in the form
//! of Envoy's `admission_control` filter. With `n` calls and `s` good ones in the window, and the success rate `t` that is wanted, a call is
//! refused with the probability
//!
//! `p = ((n - s / t) / (n + 1)) ^ (1 / aggression)`, at least 0 and at most the highest that is allowed.
//!
//! Calls that were refused here are not counted: what is counted is what the backend did. Below a lowest rate of calls nobody is refused,
//! since few calls prove little.

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

use crate::resilience::{ratio::Ratio, window::SlidingWindow};

/// What the refusing follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionConfig {
    /// What is counted over.
    pub window: Duration,
    /// The share of good calls that is wanted; above 0.
    pub min_success_rate: Ratio,
    /// Above 0; at 1 the share of refused calls rises evenly, above it earlier.
    pub aggression: f64,
    /// Calls per second below which nobody is refused.
    pub min_request_rate: u32,
    /// The largest share that is refused.
    pub max_rejection: Ratio,
}

/// Calls, and the good ones of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdmissionCounts {
    /// All.
    pub total: u32,
    /// Good ones.
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

/// How a backend has answered.
#[derive(Debug, Clone)]
pub struct AdmissionController {
    config: AdmissionConfig,
    window: SlidingWindow<AdmissionCounts>,
}

impl AdmissionController {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: AdmissionConfig, now: Instant) -> Self {
        Self {
            config,
            window: SlidingWindow::new(config.window, now),
        }
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &AdmissionConfig {
        &self.config
    }

    /// Counts a call that was made.
    pub fn record_result(&mut self, is_success: bool, now: Instant) {
        self.window.add(
            AdmissionCounts {
                total: 1,
                successes: u32::from(is_success),
            },
            now,
        );
    }

    /// What is in the window.
    pub fn counts(&mut self, now: Instant) -> AdmissionCounts {
        self.window.total(now)
    }

    /// The probability of a refusal now.
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

    /// Whether a call may be made; `random` is uniform in `0..1`.
    #[must_use]
    pub fn should_admit(&mut self, random: f64, now: Instant) -> bool {
        random >= self.rejection_probability(now).value()
    }
}

#[cfg(test)]
mod tests;

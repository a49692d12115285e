//! The health of an endpoint, derived from its active checks.
//!
//! A single failed check proves little, so this module decides on consecutive results:
//!
//! - `unhealthy_threshold` consecutive failures make an endpoint unhealthy.
//! - `healthy_threshold` consecutive passes make an unhealthy endpoint healthy again.
//! - The first pass makes an unknown endpoint healthy immediately, so that startup is fast
//!   (Envoy's rule).
//!
//! Unlike in Envoy, an unexpected status counts towards the threshold like any other failure.
//! The module does not know how a check runs or when the next one is due.
//!
//! | state | pass | failure |
//! | --- | --- | --- |
//! | unknown | healthy | unhealthy after the threshold |
//! | healthy | - | unhealthy after the threshold |
//! | unhealthy | healthy after the threshold | - |

use std::num::NonZeroU32;

/// Thresholds of consecutive check results that change the health of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthConfig {
    /// Consecutive failures after which an endpoint becomes unhealthy.
    pub unhealthy_threshold: NonZeroU32,
    /// Consecutive passes after which an unhealthy endpoint becomes healthy.
    pub healthy_threshold: NonZeroU32,
}

/// Health of an endpoint according to its active checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// No check has passed yet, and the failures are below the threshold.
    #[default]
    Unknown,
    /// The endpoint passes its checks, or its consecutive failures are below the threshold.
    Healthy,
    /// The endpoint failed its checks, and its consecutive passes are below the threshold.
    Unhealthy,
}

/// Health of one endpoint, together with its consecutive check results.
#[derive(Debug, Clone, Copy, Default)]
pub struct HealthState {
    health: Health,
    /// Consecutive results that contradict `health`.
    contrary_results: u32,
    consecutive_passes: u32,
}

impl HealthState {
    /// Records the result of one check and returns the new health if it changed.
    pub fn record(&mut self, config: &HealthConfig, passed: bool) -> Option<Health> {
        self.consecutive_passes = if passed {
            self.consecutive_passes.saturating_add(1)
        } else {
            0
        };
        let (becomes, threshold) = match (self.health, passed) {
            (Health::Healthy, true) | (Health::Unhealthy, false) => {
                self.contrary_results = 0;
                return None;
            }
            (Health::Unknown, true) => (Health::Healthy, 1),
            (Health::Unhealthy, true) => (Health::Healthy, config.healthy_threshold.get()),
            (Health::Unknown | Health::Healthy, false) => {
                (Health::Unhealthy, config.unhealthy_threshold.get())
            }
        };
        self.contrary_results = self.contrary_results.saturating_add(1);
        if self.contrary_results < threshold {
            return None;
        }
        self.health = becomes;
        self.contrary_results = 0;
        Some(becomes)
    }

    /// Returns the current health.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Returns the number of consecutive passes up to the latest check; 0 after a failure.
    #[must_use]
    pub fn consecutive_passes(&self) -> u32 {
        self.consecutive_passes
    }
}

#[cfg(test)]
mod tests;

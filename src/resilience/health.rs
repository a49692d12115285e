//! What a series of active checks says about an endpoint.
//!
//! One failed check is noise, a run of them is a fact: `unhealthy_threshold` failures in a row make an endpoint unhealthy,
//! `healthy_threshold` passes in a row make it healthy again. The very first pass makes it healthy at once, so that a start is
//! not slowed down (Envoy's rule). Unlike Envoy, an unexpected status counts towards the threshold like any other failure.
//!
//! | state | pass | failure |
//! | --- | --- | --- |
//! | unknown | healthy | unhealthy after the threshold |
//! | healthy | - | unhealthy after the threshold |
//! | unhealthy | healthy after the threshold | - |

use std::num::NonZeroU32;

/// The runs that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthConfig {
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: NonZeroU32,
    /// Passes in a row that make it healthy again.
    pub healthy_threshold: NonZeroU32,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Not checked yet, or not often enough.
    #[default]
    Unknown,
    /// Passing.
    Healthy,
    /// Failing.
    Unhealthy,
}

/// The health of one endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct HealthState {
    health: Health,
    /// Results in a row that speak against `health`.
    contrary_results: u32,
    consecutive_passes: u32,
}

impl HealthState {
    /// Takes the result of one check; the new health if it changed.
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

    /// What is known now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// How many checks in a row passed.
    #[must_use]
    pub fn consecutive_passes(&self) -> u32 {
        self.consecutive_passes
    }
}

#[cfg(test)]
mod tests;

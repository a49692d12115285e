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
mod tests {
    use super::*;
    use Health::{Healthy, Unhealthy, Unknown};

    fn config() -> HealthConfig {
        HealthConfig {
            unhealthy_threshold: NonZeroU32::new(3).expect("3"),
            healthy_threshold: NonZeroU32::new(2).expect("2"),
        }
    }

    fn health_after(results: &str) -> Health {
        let mut state = HealthState::default();
        for result in results.chars() {
            state.record(&config(), result == '+');
        }
        state.health()
    }

    #[test]
    fn health_changes_only_after_the_threshold_of_consecutive_results() {
        let table = [
            ("", Unknown),
            ("+", Healthy),
            ("--", Unknown),
            ("---", Unhealthy),
            ("--+", Healthy),
            ("+--", Healthy),
            ("+---", Unhealthy),
            ("+--+--", Healthy),
            ("---+", Unhealthy),
            ("---+-+", Unhealthy),
            ("---++", Healthy),
        ];
        for (results, expected) in table {
            assert_eq!(health_after(results), expected, "{results}");
        }
    }

    #[test]
    fn a_change_of_health_is_returned_once() {
        let mut state = HealthState::default();
        assert_eq!(state.record(&config(), true), Some(Healthy));
        assert_eq!(state.record(&config(), true), None);
        assert_eq!(state.consecutive_passes(), 2);
        assert_eq!(
            [
                state.record(&config(), false),
                state.record(&config(), false)
            ],
            [None, None]
        );
        assert_eq!(state.record(&config(), false), Some(Unhealthy));
        assert_eq!(state.record(&config(), false), None);
        assert_eq!(state.consecutive_passes(), 0);
    }
}

//! The warm-up of new endpoints and instances (slow start).
//!
//! A process that has just started is slow: its caches are empty, its code is not compiled yet,
//! and its pools hold no connections. This module decides which share of its weight it receives
//! at a given age. The formula is that of Envoy's slow start (`slow_start.rst`):
//!
//! `factor = max(minimum, (max(age, 1 s) / window) ^ (1 / aggression))`, at most 1.
//!
//! With an aggression of 1 the factor rises linearly. Above 1 it rises fast at first; below 1
//! it rises late. The factor multiplies the weight of an endpoint, so it has an effect only
//! relative to warm peers. If all endpoints are equally new, each receives its normal share.
//!
//! The module does not know when an endpoint started. The caller passes its age.

use std::time::Duration;

use crate::resilience::ratio::Ratio;

/// Configuration of a warm-up: its window, its curve and its minimum factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmUpConfig {
    window: Duration,
    aggression: f64,
    min_factor: Ratio,
}

/// Reason why [`WarmUpConfig::try_new`] rejects a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidWarmUp {
    /// The window is zero.
    ZeroWindow,
    /// The aggression is not a finite number above 0.
    NonPositiveAggression,
}

impl std::fmt::Display for InvalidWarmUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroWindow => "the window of a warm-up must be longer than 0s",
            Self::NonPositiveAggression => "the aggression of a warm-up must be a number above 0",
        })
    }
}

impl std::error::Error for InvalidWarmUp {}

impl WarmUpConfig {
    /// Creates a configuration from the window, the aggression and the minimum factor.
    ///
    /// # Errors
    /// Returns [`InvalidWarmUp`] if the window is zero, or if the aggression is not a finite
    /// number above 0.
    pub fn try_new(
        window: Duration,
        aggression: f64,
        minimum: Ratio,
    ) -> Result<Self, InvalidWarmUp> {
        if window.is_zero() {
            return Err(InvalidWarmUp::ZeroWindow);
        }
        if !(aggression.is_finite() && aggression > 0.0) {
            return Err(InvalidWarmUp::NonPositiveAggression);
        }
        Ok(Self {
            window,
            aggression,
            min_factor: minimum,
        })
    }

    /// Returns the age from which an endpoint receives its full weight.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Returns the shape of the curve: 1 is linear, above 1 rises fast at first, below 1 rises
    /// late.
    #[must_use]
    pub fn aggression(&self) -> f64 {
        self.aggression
    }

    /// Returns the lowest factor that an endpoint receives, whatever its age.
    #[must_use]
    pub fn min_factor(&self) -> Ratio {
        self.min_factor
    }

    /// Returns the factor for the weight of an endpoint of this age, in `0.0..=1.0`.
    #[must_use]
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let progress = age.max(Duration::from_secs(1)).as_secs_f64() / self.window.as_secs_f64();
        progress
            .powf(self.aggression.recip())
            .max(self.min_factor.value())
            .min(1.0)
    }
}

/// Admits a given share of requests at regular intervals.
///
/// A share of one third admits every third request. A random choice would sometimes admit
/// several in a row.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeterministicSampler {
    credit: f64,
}

impl DeterministicSampler {
    /// Decides whether to admit the next request, given the current share in `0.0..=1.0`.
    #[must_use]
    pub fn admits(&mut self, share: f64) -> bool {
        self.credit += share;
        let admits = self.credit >= 1.0;
        if admits {
            self.credit -= 1.0;
        }
        admits
    }
}

#[cfg(test)]
mod tests;

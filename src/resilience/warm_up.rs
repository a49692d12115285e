//! How much of its share an endpoint gets while it is new.
//!
//! A process that has just started is slow: caches are empty, code is not compiled yet, pools have no connections. It gets a share
//! that grows with its age (Envoy's slow start, `slow_start.rst`):
//!
//! `factor = max(minimum, (max(age, 1 s) / window) ^ (1 / aggression))`, at most 1.
//!
//! With the aggression 1 that is the straight line `k * (now - start) / warm-up`; above 1 it rises fast at first, below 1 late. The
//! factor multiplies the endpoint's weight, so that it matters against peers that are warm; when all are new, none is favoured.

use std::time::Duration;

use crate::resilience::ratio::Ratio;

/// How endpoints warm up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmUpConfig {
    window: Duration,
    aggression: f64,
    min_factor: Ratio,
}

/// Why a configuration is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidWarmUp {
    /// The window is zero.
    ZeroWindow,
    /// The aggression is not a number above 0.
    NonPositiveAggression,
}

impl std::fmt::Display for InvalidWarmUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroWindow => "a warm-up takes time",
            Self::NonPositiveAggression => "the aggression of a warm-up is a number above 0",
        })
    }
}

impl std::error::Error for InvalidWarmUp {}

impl WarmUpConfig {
    /// Makes a configuration.
    ///
    /// # Errors
    /// If the window is zero, or the aggression not above zero.
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

    /// When an endpoint is warm.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// How it grows: 1 in a straight line, above 1 fast at first, below 1 late.
    #[must_use]
    pub fn aggression(&self) -> f64 {
        self.aggression
    }

    /// The least share.
    #[must_use]
    pub fn min_factor(&self) -> Ratio {
        self.min_factor
    }

    /// The share of its weight that an endpoint of this age gets, in `0.0..=1.0`.
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

/// Lets a share of what comes pass, evenly: of a share of one third every third. Drawing lots would let more pass at times.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeterministicSampler {
    credit: f64,
}

impl DeterministicSampler {
    /// Whether the next one passes, with this share in `0.0..=1.0` passing now.
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

//! The wait before a retry: exponential backoff with full jitter.
//!
//! The wait before retry `n` (1 = the first retry) is drawn from
//! `U[0, min(base * 2^(n-1), max))`. Full jitter spreads callers that failed together over the
//! whole interval. This empties a queue faster than equal jitter or no jitter (AWS Architecture
//! Blog, "Exponential Backoff And Jitter"). Envoy's router draws from the same family. `base`
//! is therefore not a minimum: a wait can be close to zero.
//!
//! The module does not decide whether a retry is made; see [`crate::resilience::retry`].

use std::{fmt, time::Duration};

/// Bounds of the random wait: a base that doubles with each retry, and a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

/// Error for a maximum wait below the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidBackoff {
    /// Base of the rejected configuration.
    pub base: Duration,
    /// Maximum wait of the rejected configuration.
    pub max: Duration,
}

impl fmt::Display for InvalidBackoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the maximum backoff ({:?}) must be at least the base ({:?})",
            self.max, self.base
        )
    }
}

impl std::error::Error for InvalidBackoff {}

impl Backoff {
    /// Creates a backoff. With a base of zero, every wait is zero.
    ///
    /// # Errors
    /// Returns [`InvalidBackoff`] if `max` is below `base`.
    pub fn try_new(base: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if max < base {
            Err(InvalidBackoff { base, max })
        } else {
            Ok(Self { base, max })
        }
    }

    /// Returns the upper bound of the wait before retry `n`, which counts from 1.
    #[must_use]
    pub fn max_wait(&self, n: u32) -> Duration {
        let factor = 1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// Returns the wait before retry `n`, which counts from 1; `random` is uniform in `0..1`.
    #[must_use]
    pub fn wait(&self, n: u32, random: f64) -> Duration {
        self.max_wait(n).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;

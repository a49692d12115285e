//! How long to wait before a retry: exponential with full jitter.
//!
//! The wait before retry `n` (1 = the first retry) is drawn from `U[0, min(base * 2^(n-1), max))`. Full jitter spreads callers
//! that failed together over the whole interval, which empties a queue faster than equal or no jitter (AWS Architecture
//! Blog, "Exponential Backoff And Jitter"; Envoy's router uses the same family). `base` is therefore a base, not a minimum.

use std::{fmt, time::Duration};

/// A base and a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

/// The cap lies below the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidBackoff {
    /// The base that was asked for.
    pub base: Duration,
    /// The cap that was asked for.
    pub max: Duration,
}

impl fmt::Display for InvalidBackoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the longest backoff ({:?}) is below the base ({:?})",
            self.max, self.base
        )
    }
}

impl std::error::Error for InvalidBackoff {}

impl Backoff {
    /// Makes a backoff; a base of zero means no wait at all.
    ///
    /// # Errors
    /// If `max` is below `base`.
    pub fn try_new(base: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if max < base {
            Err(InvalidBackoff { base, max })
        } else {
            Ok(Self { base, max })
        }
    }

    /// The longest wait that may be drawn before retry `n`, which counts from 1.
    #[must_use]
    pub fn max_wait(&self, n: u32) -> Duration {
        let factor = 1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// The wait before retry `n`; `random` is uniform in `0..1`.
    #[must_use]
    pub fn wait(&self, n: u32, random: f64) -> Duration {
        self.max_wait(n).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;

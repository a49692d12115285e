//! A ratio in `0.0..=1.0`.
//!
//! Policy files use percent and the state machines use ratios. This type prevents confusion of
//! the two.

use std::fmt;

/// A number in `0.0..=1.0`, for example a failure rate or a share of requests.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// Error for a percentage outside `0.0..=100.0`; it holds the rejected percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InvalidRatio(f64);

impl fmt::Display for InvalidRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not between 0 and 100 percent", self.0)
    }
}

impl std::error::Error for InvalidRatio {}

impl Ratio {
    /// The ratio 0.0, which is 0 percent.
    pub const ZERO: Self = Self(0.0);
    /// The ratio 1.0, which is 100 percent.
    pub const ONE: Self = Self(1.0);

    /// Creates a ratio from a percentage in `0.0..=100.0`.
    ///
    /// # Errors
    /// Returns [`InvalidRatio`] if `percent` is outside that range or is not a number.
    pub fn from_percent(percent: f64) -> Result<Self, InvalidRatio> {
        if (0.0..=100.0).contains(&percent) {
            Ok(Self(percent / 100.0))
        } else {
            Err(InvalidRatio(percent))
        }
    }

    /// Returns `part / whole`, capped at 1.0, or [`Ratio::ZERO`] if `whole` is 0.
    #[must_use]
    pub fn from_fraction(part: u32, whole: u32) -> Self {
        if whole == 0 {
            Self::ZERO
        } else {
            Self((f64::from(part) / f64::from(whole)).min(1.0))
        }
    }

    /// Returns the ratio as a number in `0.0..=1.0`.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }

    /// Returns the ratio as a percentage in `0.0..=100.0`, rounded to six decimals.
    ///
    /// Without the rounding, 7 % would be 7.000000000000001.
    #[must_use]
    pub fn percent(self) -> f64 {
        (self.0 * 1e8).round() / 1e6
    }
}

#[cfg(test)]
mod tests;

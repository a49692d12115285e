//! A share between nothing and everything.
//!
//! Files speak of percent, the machines of ratios; the type keeps the two from being mixed up.

use std::fmt;

/// A number in `0.0..=1.0`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// The number is not a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InvalidRatio(f64);

impl fmt::Display for InvalidRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not between 0 and 100 percent", self.0)
    }
}

impl std::error::Error for InvalidRatio {}

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self(0.0);
    /// Everything.
    pub const ONE: Self = Self(1.0);

    /// Makes a ratio from a percentage.
    ///
    /// # Errors
    /// If `percent` is not a number in `0.0..=100.0`.
    pub fn from_percent(percent: f64) -> Result<Self, InvalidRatio> {
        if (0.0..=100.0).contains(&percent) {
            Ok(Self(percent / 100.0))
        } else {
            Err(InvalidRatio(percent))
        }
    }

    /// The share that `part` is of `whole`; nothing of nothing is [`Ratio::ZERO`].
    #[must_use]
    pub fn from_fraction(part: u32, whole: u32) -> Self {
        if whole == 0 {
            Self::ZERO
        } else {
            Self((f64::from(part) / f64::from(whole)).min(1.0))
        }
    }

    /// The number in `0.0..=1.0`.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }

    /// The number in `0.0..=100.0`.
    #[must_use]
    pub fn percent(self) -> f64 {
        self.0 * 100.0
    }
}

#[cfg(test)]
mod tests;

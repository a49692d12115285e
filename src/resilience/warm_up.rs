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

use super::ratio::Ratio;

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
mod tests {
    use super::*;

    #[track_caller]
    fn assert_factors(aggression: f64, table: &[(f64, f64)]) {
        let config = WarmUpConfig::try_new(
            Duration::from_secs(60),
            aggression,
            Ratio::from_percent(10.0).expect("10 %"),
        )
        .expect("fine");
        for (age, expected) in table {
            let factor = config.factor(Duration::from_secs_f64(*age));
            assert!(
                (factor - expected).abs() < 0.001,
                "aggression {aggression}, {age} s: {factor}"
            );
        }
    }

    #[test]
    fn the_factor_follows_the_curve_and_is_clamped() {
        assert_factors(
            1.0,
            &[
                (0.0, 0.1),
                (3.0, 0.1),
                (6.0, 0.1),
                (15.0, 0.25),
                (30.0, 0.5),
                (59.9, 0.998),
                (60.0, 1.0),
                (600.0, 1.0),
            ],
        );
        assert_factors(2.0, &[(0.0, 0.129), (15.0, 0.5), (60.0, 1.0)]);
        assert_factors(
            0.5,
            &[
                (0.0, 0.1),
                (15.0, 0.1),
                (30.0, 0.25),
                (54.0, 0.81),
                (60.0, 1.0),
            ],
        );
    }

    #[test]
    fn the_factor_never_falls_with_age() {
        for aggression in [0.2, 1.0, 5.0] {
            let config = WarmUpConfig::try_new(Duration::from_millis(500), aggression, Ratio::ZERO)
                .expect("fine");
            let shares: Vec<f64> = (0..1_000)
                .map(|millis| config.factor(Duration::from_millis(millis)))
                .collect();
            assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
        }
    }

    #[test]
    fn the_sampler_admits_its_share_to_within_one_request() {
        for share in [0.0, 0.1, 0.25, 1.0 / 3.0, 0.9, 1.0] {
            let mut sampler = DeterministicSampler::default();
            let mut passed = 0.0;
            for requests in 1..=1_000_u32 {
                passed += f64::from(u8::from(sampler.admits(share)));
                let due = share * f64::from(requests);
                assert!(
                    passed <= due + 1e-6 && passed > due - 1.0 - 1e-6,
                    "{passed} of {requests} at {share}"
                );
            }
        }
    }

    #[test]
    fn an_invalid_curve_is_rejected() {
        let ten = Ratio::from_percent(10.0).expect("10 %");
        assert_eq!(
            WarmUpConfig::try_new(Duration::ZERO, 1.0, ten),
            Err(InvalidWarmUp::ZeroWindow)
        );
        for aggression in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                WarmUpConfig::try_new(Duration::from_secs(1), aggression, ten),
                Err(InvalidWarmUp::NonPositiveAggression)
            );
        }
    }
}

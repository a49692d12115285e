//! Refusing a share of calls before they are made, when the backend answers too few of them well.
//!
//! A breaker says all or nothing; this says how many. It is the client-side throttling of the SRE book ("Handling Overload"), in the form
//! of Envoy's `admission_control` filter. With `n` calls and `s` good ones in the window, and the success rate `t` that is wanted, a call is
//! refused with the probability
//!
//! `p = ((n - s / t) / (n + 1)) ^ (1 / aggression)`, at least 0 and at most the highest that is allowed.
//!
//! Calls that were refused here are not counted: what is counted is what the backend did. Below a lowest rate of calls nobody is refused,
//! since few calls prove little.

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

use super::{ratio::Ratio, window::SlidingWindow};

/// What the refusing follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionConfig {
    /// What is counted over.
    pub window: Duration,
    /// The share of good calls that is wanted; above 0.
    pub min_success_rate: Ratio,
    /// Above 0; at 1 the share of refused calls rises evenly, above it earlier.
    pub aggression: f64,
    /// Calls per second below which nobody is refused.
    pub min_request_rate: u32,
    /// The largest share that is refused.
    pub max_rejection: Ratio,
}

/// Calls, and the good ones of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// All.
    pub all: u32,
    /// Good ones.
    pub good: u32,
}

impl AddAssign for Calls {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.good += other.good;
    }
}

impl SubAssign for Calls {
    fn sub_assign(&mut self, other: Self) {
        self.all -= other.all;
        self.good -= other.good;
    }
}

/// How a backend has answered.
#[derive(Debug, Clone)]
pub struct AdmissionControl {
    config: AdmissionConfig,
    window: SlidingWindow<Calls>,
}

impl AdmissionControl {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: AdmissionConfig, now: Instant) -> Self {
        Self {
            config,
            window: SlidingWindow::new(config.window, now),
        }
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &AdmissionConfig {
        &self.config
    }

    /// Counts a call that was made.
    pub fn note(&mut self, is_good: bool, now: Instant) {
        self.window.add(
            Calls {
                all: 1,
                good: u32::from(is_good),
            },
            now,
        );
    }

    /// What is in the window.
    pub fn calls(&mut self, now: Instant) -> Calls {
        self.window.total(now)
    }

    /// The probability of a refusal now.
    pub fn rejection(&mut self, now: Instant) -> Ratio {
        let Calls { all, good } = self.window.total(now);
        let all = f64::from(all);
        if all / self.config.window.as_secs_f64() < f64::from(self.config.min_request_rate) {
            return Ratio::ZERO;
        }
        let excess = (all - f64::from(good) / self.config.min_success_rate.value()) / (all + 1.0);
        let probability = excess
            .max(0.0)
            .powf(self.config.aggression.recip())
            .min(self.config.max_rejection.value());
        Ratio::from_percent(probability * 100.0).unwrap_or(Ratio::ZERO)
    }

    /// Whether a call may be made; `random` is uniform in `0..1`.
    #[must_use]
    pub fn admits(&mut self, random: f64, now: Instant) -> bool {
        random >= self.rejection(now).value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    fn config() -> AdmissionConfig {
        let percent = |percent| Ratio::from_percent(percent).expect("a percentage");
        AdmissionConfig {
            window: Duration::from_secs(30),
            min_success_rate: percent(95.0),
            aggression: 1.0,
            min_request_rate: 5,
            max_rejection: percent(80.0),
        }
    }

    fn after(config: AdmissionConfig, all: u32, good: u32) -> f64 {
        let start = some_instant();
        let mut control = AdmissionControl::new(config, start);
        (0..all).for_each(|call| control.note(call < good, start));
        control.rejection(start).percent()
    }

    #[test]
    fn the_share_that_is_refused_follows_the_formula() {
        let table = [
            (1_000, 1_000, 0.0),
            (1_000, 950, 0.0),
            (1_000, 900, 5.258),
            (1_000, 500, 47.321),
            (1_000, 0, 80.0),
            (149, 0, 0.0),
            (150, 0, 80.0),
        ];
        for (all, good, expected) in table {
            let percent = after(config(), all, good);
            assert!(
                (percent - expected).abs() < 0.001,
                "{good} of {all}: {percent}"
            );
        }
        let eager = AdmissionConfig {
            aggression: 2.0,
            ..config()
        };
        assert!(
            (after(eager, 1_000, 900) - 22.930).abs() < 0.001,
            "the square root: {}",
            after(eager, 1_000, 900)
        );
    }

    #[test]
    fn a_backend_that_recovers_is_asked_all_again() {
        let start = some_instant();
        let mut control = AdmissionControl::new(config(), start);
        let (mut dice, mut refused) = (1_u64, [0_u32; 4]);
        for call in 0..40_000_u32 {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random =
                f64::from(u32::try_from(dice >> 32).expect("32 bits")) / f64::from(u32::MAX);
            // A hundred calls a second; from 100 s to 200 s all that are made fail.
            let now = start + Duration::from_millis(10) * call;
            if control.admits(random, now) {
                control.note(!(10_000..20_000).contains(&call), now);
            } else {
                refused[(call / 10_000) as usize] += 1;
            }
        }
        assert_eq!([refused[0], refused[3]], [0, 0], "{refused:?}");
        assert!(
            (6_000..=8_100).contains(&refused[1]),
            "four of five, once the window is full of it: {refused:?}"
        );
        assert!(refused[2] < 2_500, "{refused:?}");
    }
}

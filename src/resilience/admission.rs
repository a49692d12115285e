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
pub struct AdmissionCounts {
    /// All.
    pub total: u32,
    /// Good ones.
    pub successes: u32,
}

impl AddAssign for AdmissionCounts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.successes += other.successes;
    }
}

impl SubAssign for AdmissionCounts {
    fn sub_assign(&mut self, other: Self) {
        self.total -= other.total;
        self.successes -= other.successes;
    }
}

/// How a backend has answered.
#[derive(Debug, Clone)]
pub struct AdmissionController {
    config: AdmissionConfig,
    window: SlidingWindow<AdmissionCounts>,
}

impl AdmissionController {
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
    pub fn record_result(&mut self, is_success: bool, now: Instant) {
        self.window.add(
            AdmissionCounts {
                total: 1,
                successes: u32::from(is_success),
            },
            now,
        );
    }

    /// What is in the window.
    pub fn counts(&mut self, now: Instant) -> AdmissionCounts {
        self.window.total(now)
    }

    /// The probability of a refusal now.
    pub fn rejection_probability(&mut self, now: Instant) -> Ratio {
        let AdmissionCounts { total, successes } = self.window.total(now);
        let total = f64::from(total);
        if total / self.config.window.as_secs_f64() < f64::from(self.config.min_request_rate) {
            return Ratio::ZERO;
        }
        let excess =
            (total - f64::from(successes) / self.config.min_success_rate.value()) / (total + 1.0);
        let probability = excess
            .max(0.0)
            .powf(self.config.aggression.recip())
            .min(self.config.max_rejection.value());
        Ratio::from_percent(probability * 100.0).unwrap_or(Ratio::ZERO)
    }

    /// Whether a call may be made; `random` is uniform in `0..1`.
    #[must_use]
    pub fn should_admit(&mut self, random: f64, now: Instant) -> bool {
        random >= self.rejection_probability(now).value()
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

    fn rejection_percent_after(config: AdmissionConfig, total: u32, successes: u32) -> f64 {
        let start = some_instant();
        let mut control = AdmissionController::new(config, start);
        (0..total).for_each(|call| control.record_result(call < successes, start));
        control.rejection_probability(start).percent()
    }

    #[test]
    fn the_rejection_probability_follows_the_formula() {
        let table = [
            (1_000, 1_000, 0.0),
            (1_000, 950, 0.0),
            (1_000, 900, 5.258),
            (1_000, 500, 47.321),
            (1_000, 0, 80.0),
            (149, 0, 0.0),
            (150, 0, 80.0),
        ];
        for (total, successes, expected) in table {
            let percent = rejection_percent_after(config(), total, successes);
            assert!(
                (percent - expected).abs() < 0.001,
                "{successes} of {total}: {percent}"
            );
        }
        let eager = AdmissionConfig {
            aggression: 2.0,
            ..config()
        };
        assert!(
            (rejection_percent_after(eager, 1_000, 900) - 22.930).abs() < 0.001,
            "the square root: {}",
            rejection_percent_after(eager, 1_000, 900)
        );
    }

    #[test]
    fn a_recovered_backend_receives_all_requests_again() {
        let start = some_instant();
        let mut control = AdmissionController::new(config(), start);
        let (mut seed, mut refused) = (1_u64, [0_u32; 4]);
        for call in 0..40_000_u32 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random =
                f64::from(u32::try_from(seed >> 32).expect("32 bits")) / f64::from(u32::MAX);
            // A hundred calls a second; from 100 s to 200 s all that are made fail.
            let now = start + Duration::from_millis(10) * call;
            if control.should_admit(random, now) {
                control.record_result(!(10_000..20_000).contains(&call), now);
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

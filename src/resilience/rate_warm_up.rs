//! A rate that begins small: a service that is cold, or has had little to do, is not asked for all it can do at once.
//!
//! Sentinel's warm-up (`WarmUpController.java`, after Guava's `SmoothWarmingUp`): tokens are stored while little is asked, and used up
//! by what is. Above a warning line the stored tokens make each request dearer, evenly from the normal price at the line to
//! `cold factor` times that with a full store. With the rate `c`, the window `T` and the factor `k`:
//!
//! ```text
//! warning = T c / (k - 1)      most = warning + 2 T c / (1 + k)      slope = (k - 1) / c / (most - warning)
//! price   = 1 / c + (stored - warning) slope,  above the warning line
//! ```
//!
//! The store fills with `c` while it is below the line, and above it only while less than `c / k` is asked. It begins full.

use std::time::{Duration, Instant};

/// What is asked is looked at over so long.
const STEP: Duration = Duration::from_secs(1);

/// The numbers of a warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateWarmUpConfig {
    rate: f64,
    cold_factor: f64,
    warning: f64,
    most: f64,
    slope: f64,
}

impl RateWarmUpConfig {
    /// For a rate per second that is divided by `cold_factor` (at least 2) at first.
    #[must_use]
    pub fn new(rate: f64, window: Duration, cold_factor: u32) -> Self {
        let (time, factor) = (window.as_secs_f64(), f64::from(cold_factor.max(2)));
        let warning = time * rate / (factor - 1.0);
        let most = warning + 2.0 * time * rate / (1.0 + factor);
        Self {
            rate,
            cold_factor: factor,
            warning,
            most,
            slope: (factor - 1.0) / rate / (most - warning),
        }
    }
}

/// How warm a rate is.
#[derive(Debug, Clone)]
pub struct RateWarmUp {
    stored: f64,
    /// When the store was last brought up to date.
    at: Instant,
    passed: f64,
}

impl RateWarmUp {
    /// A cold one.
    #[must_use]
    pub fn new(config: &RateWarmUpConfig, now: Instant) -> Self {
        Self {
            stored: config.most,
            at: now,
            passed: 0.0,
        }
    }

    /// How many times the normal price a token costs now, in `1.0..=cold_factor`.
    pub fn price(&mut self, config: &RateWarmUpConfig, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        if elapsed >= STEP {
            let seconds = elapsed.as_secs_f64();
            let is_asked_little = self.passed / seconds < config.rate / config.cold_factor;
            if self.stored < config.warning || is_asked_little {
                self.stored += seconds * config.rate;
            }
            self.stored = (self.stored.min(config.most) - self.passed).max(0.0);
            (self.at, self.passed) = (now, 0.0);
        }
        1.0 + (self.stored - config.warning).max(0.0) * config.slope * config.rate
    }

    /// Counts tokens that were taken.
    pub fn took(&mut self, tokens: u32) {
        self.passed += f64::from(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    /// The requests that pass in each second when far more are asked than may pass.
    fn passed_under_full_load(seconds: u32, factor: u32) -> Vec<u32> {
        let (config, start) = (
            RateWarmUpConfig::new(100.0, Duration::from_secs(10), factor),
            some_instant(),
        );
        let mut warm_up = RateWarmUp::new(&config, start);
        let mut due = start;
        let mut passed = vec![0; seconds as usize];
        for milli in 0..seconds * 1_000 {
            let now = start + Duration::from_millis(milli.into());
            let price = warm_up.price(&config, now);
            if due <= now {
                due += Duration::from_secs_f64(price / 100.0);
                warm_up.took(1);
                passed[(milli / 1_000) as usize] += 1;
            }
        }
        passed
    }

    #[test]
    fn it_begins_with_a_part_of_the_rate_and_reaches_all_of_it_within_the_window() {
        let passed = passed_under_full_load(20, 3);
        assert!((32..=35).contains(&passed[0]), "a third: {passed:?}");
        assert!(
            passed.windows(2).all(|pair| pair[1] + 1 >= pair[0]),
            "it never falls: {passed:?}"
        );
        assert!(
            passed[..11].iter().sum::<u32>() < 800,
            "it is spread over the window: {passed:?}"
        );
        assert!(
            passed[12..]
                .iter()
                .all(|passed| (99..=101).contains(passed)),
            "{passed:?}"
        );
        assert!((19..=21).contains(&passed_under_full_load(1, 5)[0]));
    }

    #[test]
    fn it_is_cold_again_after_a_time_with_little_to_do() {
        let (config, start) = (
            RateWarmUpConfig::new(100.0, Duration::from_secs(10), 3),
            some_instant(),
        );
        let mut warm_up = RateWarmUp::new(&config, start);
        for second in 1..=15 {
            warm_up.took(100);
            warm_up.price(&config, start + Duration::from_secs(second));
        }
        let warm = start + Duration::from_secs(15);
        assert!((warm_up.price(&config, warm) - 1.0).abs() < 1e-9);
        let cold = warm_up.price(&config, warm + Duration::from_mins(1));
        assert!((cold - 3.0).abs() < 1e-9, "{cold}");
    }

    #[test]
    fn a_steady_load_below_the_rate_keeps_it_warm() {
        let (config, start) = (
            RateWarmUpConfig::new(100.0, Duration::from_secs(10), 3),
            some_instant(),
        );
        let mut warm_up = RateWarmUp::new(&config, start);
        let mut price = 3.0;
        for second in 1..=60 {
            warm_up.took(60);
            price = warm_up.price(&config, start + Duration::from_secs(second));
        }
        assert!(price < 1.1, "{price}");
    }
}

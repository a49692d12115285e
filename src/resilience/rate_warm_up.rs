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
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// The numbers of a warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateRampConfig {
    rate: f64,
    cold_factor: f64,
    warning_tokens: f64,
    max_tokens: f64,
    slope: f64,
}

impl RateRampConfig {
    /// For a rate per second that is divided by `cold_factor` (at least 2) at first.
    #[must_use]
    pub fn new(rate: f64, window: Duration, cold_factor: u32) -> Self {
        let (time, factor) = (window.as_secs_f64(), f64::from(cold_factor.max(2)));
        let warning = time * rate / (factor - 1.0);
        let most = warning + 2.0 * time * rate / (1.0 + factor);
        Self {
            rate,
            cold_factor: factor,
            warning_tokens: warning,
            max_tokens: most,
            slope: (factor - 1.0) / rate / (most - warning),
        }
    }
}

/// How warm a rate is.
#[derive(Debug, Clone)]
pub struct RateRamp {
    stored_tokens: f64,
    /// When the store was last brought up to date.
    updated_at: Instant,
    taken_tokens: f64,
}

impl RateRamp {
    /// A cold one.
    #[must_use]
    pub fn new(config: &RateRampConfig, now: Instant) -> Self {
        Self {
            stored_tokens: config.max_tokens,
            updated_at: now,
            taken_tokens: 0.0,
        }
    }

    /// How many times the normal price a token costs now, in `1.0..=cold_factor`.
    pub fn token_cost_factor(&mut self, config: &RateRampConfig, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.updated_at);
        if elapsed >= UPDATE_INTERVAL {
            let seconds = elapsed.as_secs_f64();
            let is_demand_low = self.taken_tokens / seconds < config.rate / config.cold_factor;
            if self.stored_tokens < config.warning_tokens || is_demand_low {
                self.stored_tokens += seconds * config.rate;
            }
            self.stored_tokens =
                (self.stored_tokens.min(config.max_tokens) - self.taken_tokens).max(0.0);
            (self.updated_at, self.taken_tokens) = (now, 0.0);
        }
        1.0 + (self.stored_tokens - config.warning_tokens).max(0.0) * config.slope * config.rate
    }

    /// Counts tokens that were taken.
    pub fn record_taken(&mut self, tokens: u32) {
        self.taken_tokens += f64::from(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    /// The requests that pass in each second when far more are asked than may pass.
    fn admitted_under_full_load(seconds: u32, factor: u32) -> Vec<u32> {
        let (config, start) = (
            RateRampConfig::new(100.0, Duration::from_secs(10), factor),
            some_instant(),
        );
        let mut ramp = RateRamp::new(&config, start);
        let mut due = start;
        let mut admitted = vec![0; seconds as usize];
        for milli in 0..seconds * 1_000 {
            let now = start + Duration::from_millis(milli.into());
            let cost_factor = ramp.token_cost_factor(&config, now);
            if due <= now {
                due += Duration::from_secs_f64(cost_factor / 100.0);
                ramp.record_taken(1);
                admitted[(milli / 1_000) as usize] += 1;
            }
        }
        admitted
    }

    #[test]
    fn a_cold_rate_starts_at_a_fraction_and_reaches_the_full_rate_within_the_window() {
        let admitted = admitted_under_full_load(20, 3);
        assert!((32..=35).contains(&admitted[0]), "a third: {admitted:?}");
        assert!(
            admitted.windows(2).all(|pair| pair[1] + 1 >= pair[0]),
            "it never falls: {admitted:?}"
        );
        assert!(
            admitted[..11].iter().sum::<u32>() < 800,
            "it is spread over the window: {admitted:?}"
        );
        assert!(
            admitted[12..]
                .iter()
                .all(|admitted| (99..=101).contains(admitted)),
            "{admitted:?}"
        );
        assert!((19..=21).contains(&admitted_under_full_load(1, 5)[0]));
    }

    #[test]
    fn the_rate_is_cold_again_after_low_demand() {
        let (config, start) = (
            RateRampConfig::new(100.0, Duration::from_secs(10), 3),
            some_instant(),
        );
        let mut ramp = RateRamp::new(&config, start);
        for second in 1..=15 {
            ramp.record_taken(100);
            ramp.token_cost_factor(&config, start + Duration::from_secs(second));
        }
        let warm = start + Duration::from_secs(15);
        assert!((ramp.token_cost_factor(&config, warm) - 1.0).abs() < 1e-9);
        let cold = ramp.token_cost_factor(&config, warm + Duration::from_mins(1));
        assert!((cold - 3.0).abs() < 1e-9, "{cold}");
    }

    #[test]
    fn a_steady_load_below_the_rate_keeps_the_rate_warm() {
        let (config, start) = (
            RateRampConfig::new(100.0, Duration::from_secs(10), 3),
            some_instant(),
        );
        let mut ramp = RateRamp::new(&config, start);
        let mut cost_factor = 3.0;
        for second in 1..=60 {
            ramp.record_taken(60);
            cost_factor = ramp.token_cost_factor(&config, start + Duration::from_secs(second));
        }
        assert!(cost_factor < 1.1, "{cost_factor}");
    }
}

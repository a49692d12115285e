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
mod tests;

//! A rate limit that ramps up after a cold start or low demand.
//!
//! A service that is cold cannot handle its full rate at once. This module decides by how much
//! the price of a token exceeds the normal price. It does not know requests: the caller takes
//! the tokens and reports them.
//!
//! The rule is Sentinel's warm-up (`WarmUpController.java`, after Guava's `SmoothWarmingUp`).
//! Low demand stores tokens, and requests consume them. Above a warning level, stored tokens
//! make each request more expensive. The price rises linearly from the normal price at the
//! warning level to `cold factor` times that price with a full store. With the rate `c`, the
//! window `T` and the cold factor `k`:
//!
//! ```text
//! warning = T c / (k - 1)
//! max     = warning + 2 T c / (1 + k)
//! slope   = (k - 1) / c / (max - warning)
//! price   = 1 / c + (stored - warning) slope,  above the warning level
//! ```
//!
//! The store fills at the rate `c` while it is below the warning level. Above that level it
//! fills only while the demand is below `c / k`. The store starts full.

use std::time::{Duration, Instant};

/// Interval over which demand is measured before the stored tokens are updated.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// Constants of a ramp, derived from its rate, window and cold factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateRampConfig {
    rate: f64,
    cold_factor: f64,
    warning_tokens: f64,
    max_tokens: f64,
    slope: f64,
}

impl RateRampConfig {
    /// Creates the constants for a rate in tokens per second and its ramp window.
    ///
    /// The initial rate is `rate` divided by `cold_factor`. A `cold_factor` below 2 counts as
    /// 2.
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

/// State of one ramp: the stored tokens and the demand since the last update.
#[derive(Debug, Clone)]
pub struct RateRamp {
    stored_tokens: f64,
    /// Time of the last update of the stored tokens.
    updated_at: Instant,
    taken_tokens: f64,
}

impl RateRamp {
    /// Creates a cold ramp, with a full store.
    #[must_use]
    pub fn new(config: &RateRampConfig, now: Instant) -> Self {
        Self {
            stored_tokens: config.max_tokens,
            updated_at: now,
            taken_tokens: 0.0,
        }
    }

    /// Returns the current price of a token as a multiple of the normal price, in
    /// `1.0..=cold_factor`.
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

    /// Records tokens that requests took, as demand until the next update.
    pub fn record_taken(&mut self, tokens: u32) {
        self.taken_tokens += f64::from(tokens);
    }
}

#[cfg(test)]
mod tests;

//! Result of the rate limits of a route for one request.
//!
//! It is kept until the response, which then describes the nearest limit and states the cost of
//! pending charges. The module does not decide; `admission::rate_limits` does.

use std::time::Duration;

/// Result of all rate limits of a route for one request.
#[derive(Debug, Default)]
pub(crate) struct RateLimitOutcome {
    /// Rule that is nearest to rejecting the client, or has rejected it; `None` if no enforced
    /// rule applies.
    pub(crate) nearest: Option<NearestLimit>,
    /// Buckets that are charged once the response states its cost.
    pub(crate) pending_charges: Vec<PendingCharge>,
}

/// Bucket with the fewest tokens left, as response headers describe it.
#[derive(Debug)]
pub(crate) struct NearestLimit {
    /// Index of the rule in the route.
    pub(crate) rule_index: usize,
    /// Number of tokens that are left in the bucket.
    pub(crate) remaining: u32,
    /// Time until more tokens are available.
    pub(crate) reset_after: Duration,
}

/// Bucket that is charged when the response states its cost.
#[derive(Debug)]
pub(crate) struct PendingCharge {
    /// Index of the rule in the route.
    pub(crate) rule_index: usize,
    pub(crate) key: ChargeKey,
}

/// Identifies the bucket of a rule that is charged.
#[derive(Debug)]
pub(crate) enum ChargeKey {
    /// A bucket of this instance; `None` if the rule has one bucket for all requests.
    Local(Option<u64>),
    /// A bucket that all instances share; `None` if the rule has one bucket for all requests.
    Global(Option<String>),
}

impl RateLimitOutcome {
    /// Adds a shared bucket that is charged when the response states its cost.
    pub(crate) fn add_global_charge(&mut self, rule: usize, key: Option<String>) {
        self.pending_charges.push(PendingCharge {
            rule_index: rule,
            key: ChargeKey::Global(key),
        });
    }
}

//! What the rate limits of a route decided about a request, until its response is charged and described.

use std::time::Duration;

/// The result of all rate limits of a route for one request.
#[derive(Debug, Default)]
pub(crate) struct RateLimitOutcome {
    /// The rule that is nearest to reject the client, or has rejected it.
    pub(crate) nearest: Option<NearestLimit>,
    /// Buckets that are charged once the cost in the response is known.
    pub(crate) pending_charges: Vec<PendingCharge>,
}

/// The bucket with the fewest tokens left.
#[derive(Debug)]
pub(crate) struct NearestLimit {
    /// The index of the rule in the route.
    pub(crate) rule_index: usize,
    /// Tokens left.
    pub(crate) remaining: u32,
    /// Time until more tokens are available.
    pub(crate) reset_after: Duration,
}

/// A bucket that is charged when the response states its cost.
#[derive(Debug)]
pub(crate) struct PendingCharge {
    /// The index of the rule in the route.
    pub(crate) rule_index: usize,
    pub(crate) key: ChargeKey,
}

/// Which bucket of a rule is charged.
#[derive(Debug)]
pub(crate) enum ChargeKey {
    /// A bucket of this instance.
    Local(Option<u64>),
    /// A bucket that all instances share.
    Global(Option<String>),
}

impl RateLimitOutcome {
    /// Adds a shared bucket that is charged for the response.
    pub(crate) fn add_global_charge(&mut self, rule: usize, key: Option<String>) {
        self.pending_charges.push(PendingCharge {
            rule_index: rule,
            key: ChargeKey::Global(key),
        });
    }
}

//! Hedging: a further attempt before the first one has failed.
//!
//! The keys follow gRPC's hedging policy (gRFC A6). The delay is estimated in
//! `resilience/hedge`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::mode::ModeSetting,
    units::{PolicyDuration, StatusRange},
};

/// Sends a further attempt to another endpoint if a response is late. The first response wins,
/// and the other attempts are cancelled.
///
/// Only idempotent requests without a body are hedged. Each further attempt is withdrawn from
/// the retry budget, and a hedged request is not retried.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hedging {
    /// Whether further attempts are sent. Shadow only counts the requests that would be hedged.
    /// Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of attempts, including the first, 2 to 5. Default 2.
    pub max_attempts: Option<u32>,
    /// Time before each further attempt, above 0s. Default the 95th percentile of the backend's
    /// latency in the last minute. Until 50 latencies are known, no request is hedged.
    pub hedging_delay: Option<PolicyDuration>,
    /// Statuses that do not end the request while another attempt is in flight or possible. The
    /// next attempt then starts at once. Default 502, 503, 504.
    pub non_fatal_codes: Option<Vec<StatusRange>>,
}

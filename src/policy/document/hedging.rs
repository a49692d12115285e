//! A second request before the first has failed; spelled as gRPC's hedging policy (A6).

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ModeSetting,
    units::{PolicyDuration, StatusRange},
};

/// Asks another endpoint as well when an answer is late, and takes the one that comes first; the others are cancelled. For idempotent
/// requests without a body only. Each further request is taken out of the retry budget, and what is hedged is not retried.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hedging {
    /// Whether it acts; Shadow counts the requests that would have been hedged.
    pub mode: ModeSetting,
    /// Requests at most, with the first; 2 to 5. Default 2.
    pub max_attempts: Option<u32>,
    /// How long to wait for each before the next. Default the 95th percentile of what the backend took within the last minute; until 50 answers
    /// are known nothing is hedged.
    pub hedging_delay: Option<PolicyDuration>,
    /// Statuses that are no answer while another request is out or may be made: the next one goes out at once. Default 502, 503, 504.
    pub non_fatal_codes: Option<Vec<StatusRange>>,
}

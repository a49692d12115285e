//! Refusing a share of requests while a backend fails; spelled as Envoy Gateway's admission control.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ModeSetting,
    units::{Percent, PolicyDuration},
};

/// Refuses a share of the requests while too few are answered well: the share rises with the failures, where a breaker is all or nothing.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdmissionControlSection {
    /// Whether it acts.
    pub mode: ModeSetting,
    /// What is counted over. Default 30s.
    pub sampling_window: Option<PolicyDuration>,
    /// Percent of attempts that are to be answered well; the breaker's `failureCodes` say what is not. Default 95.
    pub min_success_rate: Option<Percent>,
    /// At 1 the share rises evenly with the failures, above it earlier. Default 1.
    pub rejection_aggression: Option<f64>,
    /// Attempts per second below which nobody is refused. Default 5.
    pub min_request_rate: Option<u32>,
    /// The largest share that is refused, in percent. Default 80.
    pub max_rejection_percent: Option<Percent>,
}

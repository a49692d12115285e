//! Admission control: the rejection of a share of the requests while a backend fails.
//!
//! The keys are those of Envoy Gateway's admission control. The formula is in
//! `resilience/admission`; this module does not know it.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::mode::ModeSetting,
    units::{Percent, PolicyDuration},
};

/// Rejects a share of the requests while the success rate of a backend is too low.
///
/// The share rises with the failures. A circuit breaker, in contrast, rejects all requests or
/// none. A rejected client receives 503 with the reason `admission_control`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdmissionControlSection {
    /// Whether the sidecar rejects requests. Shadow only counts the requests that would be
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// Window over which attempts are counted, at least 1s. Default 30s.
    pub sampling_window: Option<PolicyDuration>,
    /// Success rate in percent below which requests are rejected, above 0. The breaker's
    /// `failureCodes` define failures; a 429 is not one. Default 95.
    pub min_success_rate: Option<Percent>,
    /// Shape of the rejected share, above 0. At 1 the share rises linearly with the failures;
    /// above 1 it rises earlier. Default 1.
    pub rejection_aggression: Option<f64>,
    /// Attempts per second in the window below which no request is rejected. Default 5.
    pub min_request_rate: Option<u32>,
    /// Maximum share of requests that are rejected, in percent. Default 80.
    pub max_rejection_percent: Option<Percent>,
}

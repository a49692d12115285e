//! Telemetry about requests: the access log.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::units::{Percent, StatusRange};

/// Telemetry about requests: the access log.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// Access log with one line per request.
    pub access_log: Option<AccessLogSection>,
}

/// Access log with one line per request, on standard output.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLogSection {
    /// Format of the lines, or Off. Default JSON.
    pub format: Option<AccessLogFormat>,
    /// Share of the requests that is logged, in percent. Default 100.
    pub sampling_percentage: Option<Percent>,
    /// Statuses of requests that are always logged, whatever `samplingPercentage` is. Default
    /// none.
    pub always_log_codes: Option<Vec<StatusRange>>,
}

/// Format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum AccessLogFormat {
    /// Writes one JSON object per line.
    #[default]
    JSON,
    /// Disables the access log.
    Off,
}

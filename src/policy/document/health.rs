//! How it is found out which endpoints are well.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ModeSetting,
    units::{Percent, PolicyDuration, StatusRange},
};

/// How the endpoints' health is found out.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// Below this percentage of healthy endpoints, health is ignored; 0 never ignores it. Of three endpoints or more. Default 50.
    pub panic_threshold: Option<u32>,
    /// Asking the endpoints.
    pub active: Option<ActiveCheck>,
}

/// Asking the endpoints.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActiveCheck {
    /// HTTP asks a path, TCP connects, GRPC asks the health service.
    #[serde(rename = "type")]
    pub kind: ActiveCheckType,
    /// The time between two checks of an endpoint. Default 5s.
    pub interval: Option<PolicyDuration>,
    /// The time between two checks while an endpoint is unhealthy. Default the interval.
    pub unhealthy_interval: Option<PolicyDuration>,
    /// The time to the next check after a result that differs from what is known, so that a change is confirmed soon. Default the
    /// interval.
    pub edge_interval: Option<PolicyDuration>,
    /// How far the time between two checks is drawn around its value, in percent. Default 10.
    pub jitter_percent: Option<Percent>,
    /// The time for one check. Default 1s.
    pub timeout: Option<PolicyDuration>,
    /// Failures in a row that make an endpoint unhealthy. Default 3.
    pub unhealthy_threshold: Option<u32>,
    /// Passes in a row that make it healthy again; the very first pass does at once. Default 2.
    pub healthy_threshold: Option<u32>,
    /// What to ask, for HTTP.
    pub http: Option<HttpCheck>,
    /// What to ask, for GRPC.
    pub grpc: Option<GrpcCheck>,
}

/// How an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ActiveCheckType {
    /// A GET of a path.
    HTTP,
    /// A connection; under TLS, one that both sides agree on.
    TCP,
    /// The standard health service of gRPC (grpc.health.v1), over HTTP/2.
    GRPC,
}

/// What a check of gRPC asks.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcCheck {
    /// The service. Default the whole server.
    pub service: String,
}

/// What an HTTP check asks.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The path.
    pub path: String,
    /// The host header. Default the endpoint's address.
    pub host: Option<String>,
    /// The statuses that pass. Default 200-399.
    pub expected_statuses: Option<Vec<StatusRange>>,
    /// What the body must contain, in its first 4 KiB.
    pub expected_body: Option<String>,
}

/// Endpoints that answer badly or slowly are left out for a while, and come back through one probe request. Names and numbers are
/// Envoy's, unless it is said otherwise.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Enforce acts, Shadow only tells, Off does nothing. Default Enforce.
    pub mode: ModeSetting,
    /// Failures in a row that eject: statuses from 500, and attempts without an answer. 0 is off. Default 5.
    pub consecutive_5xx_errors: Option<u32>,
    /// Answers 502, 503 or 504 in a row that eject. Default 0, which is off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Attempts without an answer in a row that eject: refused, reset, timed out. 0 is off. Default 5.
    pub consecutive_local_origin_failures: Option<u32>,
    /// The time between two comparisons of the endpoints; latencies are compared twice in it. Default 10s.
    pub interval: Option<PolicyDuration>,
    /// How long the first ejection lasts; the n-th in a row lasts n times as long, and after a failed probe as long as the first. Default
    /// 30s.
    pub base_ejection_time: Option<PolicyDuration>,
    /// The longest ejection. Default 5m.
    pub max_ejection_time: Option<PolicyDuration>,
    /// How many of the endpoints may be out at once; at least one, and never the last. Default 50, Envoy's is 10.
    pub max_ejection_percent: Option<Percent>,
    /// Ejects whose success rate is below the mean of all less so many standard deviations. 0 is off. Default 1.9.
    pub success_rate_stdev_factor: Option<f64>,
    /// Endpoints with enough requests that are needed to compare success rates. Default 5.
    pub success_rate_minimum_hosts: Option<u32>,
    /// Requests in an interval that are enough to compare success rates. Default 100.
    pub success_rate_request_volume: Option<u32>,
    /// Ejects whose share of failures is at least so many percent. Default 0, which is off.
    pub failure_percentage_threshold: Option<Percent>,
    /// Endpoints with enough requests that are needed for that. Default 5.
    pub failure_percentage_minimum_hosts: Option<u32>,
    /// Requests in an interval that are enough for that. Default 50.
    pub failure_percentage_request_volume: Option<u32>,
    /// Ejects whose 90th percentile of latency is above so many times the median of its peers' of the same priority and zone, and 25 ms
    /// above it; of less than ten answers their median counts. Its probe has to be quicker than that. 0 is off. Default 3. No other
    /// proxy has this.
    pub slow_factor: Option<f64>,
}

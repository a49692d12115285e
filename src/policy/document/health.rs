//! Health of endpoints: active checks, the panic threshold and outlier detection.
//!
//! The names follow Envoy. This module does not know any results.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    mode::ModeSetting,
    units::{Percent, PolicyDuration, StatusRange},
};

/// Active checks of the endpoints, and the panic threshold.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// Percentage of available endpoints, 0 to 100, below which availability is ignored and all
    /// endpoints receive requests. 0 disables this. It applies per priority and zone, if the
    /// backend has at least three endpoints and the other priorities and zones lack capacity.
    /// Default 50.
    pub panic_threshold: Option<u32>,
    /// Periodic checks that the sidecar sends to each endpoint. Default none.
    pub active: Option<ActiveCheck>,
}

/// Periodic checks that the sidecar sends to each endpoint.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActiveCheck {
    /// Type of the check. HTTP requests a path, TCP opens a connection, and GRPC calls the
    /// health service.
    #[serde(rename = "type")]
    pub kind: ActiveCheckType,
    /// Time between two checks of an endpoint, at least 10ms. Default 5s.
    pub interval: Option<PolicyDuration>,
    /// Time between two checks while an endpoint is unhealthy, at least 10ms. Default
    /// `interval`.
    pub unhealthy_interval: Option<PolicyDuration>,
    /// Time until the next check after a result that contradicts the known health, at least
    /// 10ms. A short time confirms a change of health sooner. Default `interval`.
    pub edge_interval: Option<PolicyDuration>,
    /// Maximum random deviation of the time between two checks, in percent of that time, in
    /// both directions. Default 10.
    pub jitter_percent: Option<Percent>,
    /// Maximum time of one check, above 0s. Default 1s.
    pub timeout: Option<PolicyDuration>,
    /// Consecutive failures after which an endpoint becomes unhealthy, at least 1. Default 3.
    pub unhealthy_threshold: Option<u32>,
    /// Consecutive passes after which an unhealthy endpoint becomes healthy, at least 1. An
    /// endpoint without a result becomes healthy after one pass. Default 2.
    pub healthy_threshold: Option<u32>,
    /// Request of the check. Required with HTTP, and not allowed with other types.
    pub http: Option<HttpCheck>,
    /// Service that the check names. Allowed only with GRPC.
    pub grpc: Option<GrpcCheck>,
}

/// Type of an active check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ActiveCheckType {
    /// Sends a GET request in the protocol of the backend.
    HTTP,
    /// Opens a connection. If the backend uses TLS, the TLS handshake must succeed.
    TCP,
    /// Calls the standard gRPC health service (`grpc.health.v1`) over HTTP/2. Only SERVING
    /// passes.
    GRPC,
}

/// Service that a gRPC check names.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcCheck {
    /// Name of the service, at most 125 bytes. Default empty, which checks the server as a
    /// whole.
    pub service: String,
}

/// Request and expected response of an HTTP check.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// Path of the request, with a leading `/`.
    pub path: String,
    /// Value of the host header. Default the address of the endpoint.
    pub host: Option<String>,
    /// Statuses with which the check passes. Default 200-399.
    pub expected_statuses: Option<Vec<StatusRange>>,
    /// Text that the first 4 KiB of the body must contain. By default, the body is not checked.
    pub expected_body: Option<String>,
}

/// Temporary ejection of endpoints that fail or are slow. An ejected endpoint returns after one
/// successful probe request.
///
/// Names and defaults are Envoy's, except where a description says otherwise.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Enforce ejects endpoints. Shadow only reports which endpoints would be ejected. Off
    /// disables detection. Default Enforce.
    pub mode: ModeSetting,
    /// Consecutive failures that eject an endpoint: 5xx statuses and attempts without a
    /// response. 0 disables it. Default 5.
    pub consecutive_5xx_errors: Option<u32>,
    /// Consecutive responses 502, 503 or 504 that eject an endpoint. 0 disables it. Default 0.
    pub consecutive_gateway_errors: Option<u32>,
    /// Consecutive attempts without a response that eject an endpoint: failed connections,
    /// resets and timeouts. 0 disables it. Default 5.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Time between two comparisons of the endpoints, above 0s. Latencies are compared twice
    /// per interval. Default 10s.
    pub interval: Option<PolicyDuration>,
    /// Duration of the first ejection, above 0s. The n-th ejection in a row lasts n times as
    /// long. After a failed probe, the endpoint is ejected for this time again. Default 30s.
    pub base_ejection_time: Option<PolicyDuration>,
    /// Maximum duration of an ejection, at least `baseEjectionTime`. Default 5m, or
    /// `baseEjectionTime` if that is longer.
    pub max_ejection_time: Option<PolicyDuration>,
    /// Maximum share of the endpoints that are ejected at the same time, in percent. At least
    /// one endpoint may be ejected, unless the value is 0. The last available endpoint is never
    /// ejected. Default 50; Envoy's default is 10.
    pub max_ejection_percent: Option<Percent>,
    /// Number of standard deviations below the mean success rate at which an endpoint is
    /// ejected. 0 disables it. Default 1.9.
    pub success_rate_stdev_factor: Option<f64>,
    /// Minimum number of endpoints with enough requests for the comparison of success rates.
    /// Default 5.
    pub success_rate_minimum_hosts: Option<u32>,
    /// Minimum number of requests of an endpoint per interval for the comparison of success
    /// rates. Default 100.
    pub success_rate_request_volume: Option<u32>,
    /// Share of failures, in percent, from which an endpoint is ejected. 0 disables it. Default
    /// 0.
    pub failure_percentage_threshold: Option<Percent>,
    /// Minimum number of endpoints with enough requests for `failurePercentageThreshold`.
    /// Default 5.
    pub failure_percentage_minimum_hosts: Option<u32>,
    /// Minimum number of requests of an endpoint per interval for `failurePercentageThreshold`.
    /// Default 50.
    pub failure_percentage_request_volume: Option<u32>,
    /// Multiple of the median latency of the peers, above 1, at which an endpoint is ejected.
    /// The 90th percentile of the endpoint is compared with the median of its peers in the same
    /// priority and zone. It must also exceed that median by 25 ms. With 3 to 9 responses, the
    /// median of the endpoint is compared instead. The probe request must be faster than that
    /// threshold. 0 disables it. Default 3. Envoy has no equivalent.
    pub slow_factor: Option<f64>,
}

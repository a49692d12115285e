//! Fault injection: deliberate delays and errors that test how clients react.
//!
//! The keys are those of Envoy Gateway's fault injection.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{grpc_code::GrpcCode, mode::ModeSetting},
    units::{Percent, PolicyDuration, Timestamp},
};

/// Delays or aborts a share of the requests of a route, to test how clients react. It ends by
/// itself at `until`. At least one of `delay` and `abort` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjection {
    /// Whether faults are injected. Shadow only counts the requests that would be affected.
    /// Default Enforce.
    #[serde(default)]
    pub mode: ModeSetting,
    /// Time at which the injection ends, like `2026-12-01T00:00:00Z`.
    pub until: Timestamp,
    /// Delay before a share of the requests is forwarded.
    pub delay: Option<FaultDelay>,
    /// Error that a share of the requests receives instead of being forwarded.
    pub abort: Option<FaultAbort>,
    /// Maximum number of requests of the route that are affected at the same time, at least 1.
    /// Further requests are forwarded normally. Default 100.
    pub max_active_faults: Option<u32>,
}

/// Injected delay of requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// Length of the delay, above 0s.
    pub fixed_delay: PolicyDuration,
    /// Share of the requests that is delayed, in percent. Default 100.
    pub percentage: Option<Percent>,
}

/// Injected error response. Exactly one of `httpStatus` and `grpcStatus` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// HTTP status of the response, 200 to 599.
    pub http_status: Option<u16>,
    /// gRPC status of the response. The response is a gRPC response, whatever the protocol of
    /// the request is.
    pub grpc_status: Option<GrpcCode>,
    /// Share of the requests that is aborted, in percent. Default 100.
    pub percentage: Option<Percent>,
}

//! Faults on purpose; spelled as Envoy Gateway's.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{GrpcCode, ModeSetting},
    units::{Percent, PolicyDuration, Timestamp},
};

/// Makes some requests late or fail, to see what happens. It ends by itself.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjection {
    /// Whether it acts; Shadow counts what would have been done.
    #[serde(default)]
    pub mode: ModeSetting,
    /// When it ends, like `2026-12-01T00:00:00Z`. There is no fault without an end.
    pub until: Timestamp,
    /// Requests that are kept waiting before they are forwarded.
    pub delay: Option<FaultDelay>,
    /// Requests that are answered with an error instead of being forwarded.
    pub abort: Option<FaultAbort>,
    /// Requests under a fault at once; the others pass. Default 100.
    pub max_active_faults: Option<u32>,
}

/// A wait.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// How long.
    pub fixed_delay: PolicyDuration,
    /// The share of requests, in percent. Default 100.
    pub percentage: Option<Percent>,
}

/// An error.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// The status, 200 to 599. One of `httpStatus` and `grpcStatus` is given.
    pub http_status: Option<u16>,
    /// The status of gRPC; the answer is one of gRPC, whatever was asked.
    pub grpc_status: Option<GrpcCode>,
    /// The share of requests, in percent. Default 100.
    pub percentage: Option<Percent>,
}

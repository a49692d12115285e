//! Lifecycle of the instance: startup, readiness, warm-up and drain.
//!
//! This module does not know the current stage of the instance.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::global_rate_limit::ReplicasSection,
    mode::ModeSetting,
    units::{Percent, PolicyDuration},
};

/// Startup, readiness, warm-up and drain of this instance.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LifecycleSection {
    /// Conditions under which the instance first becomes ready.
    pub startup: Option<Startup>,
    /// Backends that must each have at least one available endpoint while the instance is
    /// ready. Each backend needs an active check. List a dependency only if the app can do
    /// nothing without it. When it fails, all instances become unready at once.
    pub readiness_gates: Option<Vec<String>>,
    /// Paths of the app's own probes, which the admin port relays under `/app-health/`.
    pub app_probes: Option<AppProbesSection>,
    /// Share of the traffic that the instance accepts while it is new. Without this section, it
    /// accepts all requests.
    pub warm_up: Option<InstanceWarmUp>,
    /// Timing of a drain.
    pub drain: Option<DrainSection>,
    /// Backend whose endpoints are the instances of this same service, including this one: a
    /// headless Service by `dns`, or a file. With it, the instance knows whether the others can
    /// carry its load during a drain (`outrigger drain --require-capacity`). `warmUp` also
    /// needs it, with an active check that reaches the sidecars of the other instances.
    pub replicas: Option<ReplicasSection>,
}

/// Paths of the app's own probes. It needs `startup.requireBackend`.
///
/// Each default is the path of that backend's active check. If the check is not of type HTTP, a
/// probe without a path returns 404.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AppProbesSection {
    /// Path of the liveness probe, with a leading `/`.
    pub livez: Option<String>,
    /// Path of the readiness probe, with a leading `/`.
    pub readyz: Option<String>,
    /// Path of the startup probe, with a leading `/`.
    pub startupz: Option<String>,
}

/// Share of the traffic that a new instance accepts: `(age / window) ^ (1 / aggression)` of its
/// normal share, at least `minPercent`.
///
/// The instance announces its start to the sidecars of clients, which then send only this share.
/// Requests of other clients above the share are rejected unprocessed with 503, if the checks of
/// `replicas` find another instance that is healthy and warm.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InstanceWarmUp {
    /// Whether excess requests are rejected. Shadow counts them, and does not announce the
    /// warm-up to clients. Default Enforce.
    pub mode: ModeSetting,
    /// Age from which the instance accepts its full share, above 0s. The age starts when the
    /// instance first becomes ready. Default 30s.
    pub window: Option<PolicyDuration>,
    /// Shape of the increase, above 0. At 1 it is linear, above 1 it is fast at first, and
    /// below 1 it is slow at first. Default 1.
    pub aggression: Option<f64>,
    /// Minimum share that the instance accepts, in percent of its normal share. Default 10.
    pub min_percent: Option<Percent>,
}

/// Conditions under which the instance first becomes ready.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Startup {
    /// Backend of the app. Its active check must pass before the instance becomes ready.
    /// Default none.
    pub require_backend: Option<String>,
    /// Additional time between the required passes and readiness. It needs `requireBackend`.
    /// Default 0s.
    pub delay: Option<PolicyDuration>,
    /// Consecutive passes of the active check that are required, at least 1. It needs
    /// `requireBackend`. Default 1.
    pub success_threshold: Option<u32>,
}

/// Timing of a drain. All times except `quietPeriod` count from the start of the drain.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSection {
    /// Time for which the instance is not ready but still serves requests. It should exceed the
    /// time until clients stop selecting the instance. Default 5s.
    pub delay: Option<PolicyDuration>,
    /// Time without a new inbound request, and with none in flight, after which the instance
    /// counts as drained. Default 1s.
    pub quiet_period: Option<PolicyDuration>,
    /// Time after which long streams are ended gracefully, at most `timeout`. A WebSocket is
    /// closed with 1001. Server-sent events end between two events. A gRPC stream ends between
    /// two messages, with UNAVAILABLE. Default 15s, or `timeout` if that is shorter.
    pub soft_timeout: Option<PolicyDuration>,
    /// Time after which the instance counts as drained in any case, at least `delay`. Default
    /// 25s.
    pub timeout: Option<PolicyDuration>,
}

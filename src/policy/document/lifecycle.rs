//! How the instance comes and goes.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{ModeSetting, ReplicasSection},
    units::{Percent, PolicyDuration},
};

/// How this instance comes and goes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LifecycleSection {
    /// When it is ready.
    pub startup: Option<Startup>,
    /// Backends without which it is not ready: of each at least one endpoint must be available. Each needs an active check. Name a dependency here
    /// only if the app can do nothing at all without it: when it fails, every instance becomes unready at once.
    pub readiness_gates: Option<Vec<String>>,
    /// Where the app answers the probes that are passed through at `/app-health/`.
    pub app_probes: Option<AppProbesSection>,
    /// How much of the traffic it takes while it is new.
    pub warm_up: Option<InstanceWarmUp>,
    /// How it leaves.
    pub drain: Option<DrainSection>,
    /// The backend whose endpoints are the instances of this very service, this one included: a headless service by `dns`, or a file. With it the
    /// instance knows whether the others can carry the load when it leaves; and with an active check, by way of their sidecars, which of them can take what
    /// this one leaves to them while it is new.
    pub replicas: Option<ReplicasSection>,
}

/// Where the app answers probes. A path that is not given is that of the required backend's active check.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AppProbesSection {
    /// Whether it lives.
    pub livez: Option<String>,
    /// Whether it is ready.
    pub readyz: Option<String>,
    /// Whether it has started.
    pub startupz: Option<String>,
}

/// How much of the traffic it takes while it is new: `f(x) = (age / window) ^ (1 / aggression)` of its share, at least `minPercent`. Callers
/// that are sidecars are told, and send it no more; of what others send, the rest is refused unprocessed while a check of `replicas` knows
/// another instance that is well and not new itself.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InstanceWarmUp {
    /// Whether it acts; Shadow counts what it would refuse, and tells callers nothing.
    pub mode: ModeSetting,
    /// After which time, from the moment it was first ready, it takes its full share. Default 30s.
    pub window: Option<PolicyDuration>,
    /// 1 grows in a straight line, above 1 fast at first, below 1 late. Default 1.
    pub aggression: Option<f64>,
    /// What it takes at least, in percent of its share. Default 10.
    pub min_percent: Option<Percent>,
}

/// When it is ready.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Startup {
    /// The backend whose active check must have passed: the app.
    pub require_backend: Option<String>,
    /// How long to wait after that. Default 0s.
    pub delay: Option<PolicyDuration>,
    /// How many passes in a row are needed. Default 1.
    pub success_threshold: Option<u32>,
}

/// How it leaves.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSection {
    /// How long to serve as before after becoming unready, because the news has to travel. Default 5s.
    pub delay: Option<PolicyDuration>,
    /// How long no request must have come, with none in flight, to have drained. Default 1s.
    pub quiet_period: Option<PolicyDuration>,
    /// From when on streams that do not end by themselves are ended: a WebSocket with 1001, server-sent events between two of them, a stream
    /// of gRPC with UNAVAILABLE between two messages. Default 15s, or `timeout` if that is shorter.
    pub soft_timeout: Option<PolicyDuration>,
    /// When it has drained in any case. Default 25s.
    pub timeout: Option<PolicyDuration>,
}

//! Compiled startup and shutdown of this instance.
//!
//! The types hold configuration only. They do not know the current stage or readiness.

use std::{sync::Arc, time::Duration};

use crate::resilience::{Mode, lifecycle::DrainConfig, warm_up::WarmUpConfig};

/// Startup, warm-up, probes and drain of this instance. Backends are indices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LifecycleSpec {
    /// Backend of the app, whose active check must pass before the instance is ready.
    pub required_backend: Option<usize>,
    /// Time between the last required pass and readiness.
    pub startup_delay: Duration,
    /// Consecutive passes that the backend needs, at least 1.
    pub success_threshold: u32,
    /// Backends that each need an available endpoint before the instance is ready.
    pub readiness_gates: Vec<usize>,
    /// Paths of the app's probes, if the app's backend is known.
    pub app_probes: Option<AppProbesSpec>,
    /// Gradual increase of traffic to a new instance, if configured.
    pub warm_up: Option<InstanceWarmUpSpec>,
    /// Durations and limits of the drain.
    pub drain: DrainConfig,
    /// Backend whose endpoints are the instances of this service, if configured.
    pub replicas_backend: Option<usize>,
}

/// Paths of the app's probes. A probe without a path is not available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppProbesSpec {
    /// Index of the app's backend.
    pub backend: usize,
    /// Path of the liveness probe.
    pub livez_path: Option<Arc<str>>,
    /// Path of the readiness probe.
    pub readyz_path: Option<Arc<str>>,
    /// Path of the startup probe.
    pub startupz_path: Option<Arc<str>>,
}

/// Gradual increase of traffic to this instance while it is new.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceWarmUpSpec {
    /// Whether the warm-up limits traffic, is only logged, or is off.
    pub mode: Mode,
    /// Duration and shape of the increase.
    pub config: WarmUpConfig,
}

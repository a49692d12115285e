//! How this instance comes and goes.

use std::{sync::Arc, time::Duration};

use crate::resilience::{Mode, lifecycle::DrainConfig, warm_up::WarmUpConfig};

/// How this instance comes and goes. Backends are indices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LifecycleSpec {
    /// The backend whose check must have passed: the app.
    pub required_backend: Option<usize>,
    /// How long to wait after that.
    pub startup_delay: Duration,
    /// Passes in a row that are needed.
    pub success_threshold: u32,
    /// Backends of which an endpoint must be available.
    pub readiness_gates: Vec<usize>,
    /// Where the app answers probes.
    pub app_probes: Option<AppProbesSpec>,
    /// How it takes traffic while it is new.
    pub warm_up: Option<InstanceWarmUpSpec>,
    /// How it leaves.
    pub drain: DrainConfig,
    /// The backend whose endpoints are the instances of this service.
    pub replicas_backend: Option<usize>,
}

/// Where the app answers probes; a path that is not known cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppProbesSpec {
    /// The app.
    pub backend: usize,
    /// Whether it lives.
    pub livez_path: Option<Arc<str>>,
    /// Whether it is ready.
    pub readyz_path: Option<Arc<str>>,
    /// Whether it has started.
    pub startupz_path: Option<Arc<str>>,
}

/// How this instance takes traffic while it is new.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceWarmUpSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// The curve.
    pub config: WarmUpConfig,
}

//! The policies of the moment, joined with their state: what a request pins.

use std::{sync::Arc, time::Instant};

use tokio::sync::Semaphore;

use crate::{
    policy::snapshot::{
        AccessLogSpec, ConnectionLimitsSpec, PolicySnapshot, PolicySpec, RouteSpec,
    },
    resilience::{Mode, ratio::Ratio},
    state::{
        policies::{
            admission_control::AdmissionState,
            breaker::BreakerState,
            concurrency_limit::ConcurrencyLimitState,
            hedge::HedgeState,
            rate_limit::RateLimitState,
            remote_limits::RemoteLimits,
            retry_budget::{RetryBudgetState, RetryGuard, RetryRejection},
            stale::StaleState,
        },
        topology::backend::BackendState,
    },
    telemetry::metrics::RouteMetrics,
};

/// Requests that may be retrying at once where no policy bounds them: what `connectionLimits` says by default.
const DEFAULT_MAX_PARALLEL_RETRIES: u32 = 204;

/// What is in force.
#[derive(Debug)]
pub struct ActivePolicy {
    /// Counted from 1; 0 is nothing.
    pub generation: u64,
    /// The policies.
    pub snapshot: Arc<PolicySnapshot>,
    /// The routes, in the order of the policies.
    pub routes: Vec<RouteState>,
    /// The backends, in the order of the policies.
    pub backends: Vec<Arc<BackendState>>,
    /// Every breaker, by name.
    pub breakers: Vec<Arc<BreakerState>>,
    /// Every concurrency limit, by name.
    pub concurrency_limits: Vec<Arc<ConcurrencyLimitState>>,
    /// Every admission control, by name.
    pub admission_controls: Vec<Arc<AdmissionState>>,
    /// Every store of earlier answers, by name.
    pub stale_caches: Vec<Arc<StaleState>>,
    /// Every retry budget, by name.
    pub retry_budgets: Vec<Arc<RetryBudgetState>>,
    /// Who keeps the limits of all instances, if it is somebody else.
    pub remote_limits: Option<Arc<RemoteLimits>>,
    /// The metrics of requests that no route took.
    pub unrouted_metrics: Arc<RouteMetrics>,
}

/// A route as it lives.
#[derive(Debug)]
pub struct RouteState {
    /// What the policy says.
    pub spec: RouteSpec,
    /// The buckets of its rate limits, in the order of the rules.
    pub rate_limits: Vec<Arc<RateLimitState>>,
    /// Where its requests go.
    pub destinations: Vec<DestinationState>,
    /// Where they go besides: to the backends of fallbacks and mirrors.
    pub auxiliary_backends: Vec<DestinationState>,
    /// Who gets copies.
    pub mirrors: Vec<MirrorState>,
    /// Places of requests under a fault on purpose.
    pub fault_permits: Arc<Semaphore>,
    /// The handles of its metrics.
    pub metrics: Arc<RouteMetrics>,
}

/// Who gets copies of a route's requests.
#[derive(Debug)]
pub struct MirrorState {
    /// The index of its backend among those aside.
    pub auxiliary_index: usize,
    /// How many of them.
    pub share: Ratio,
    /// Places of copies that are out.
    pub permits: Arc<Semaphore>,
}

/// A backend as a route sees it.
#[derive(Debug)]
pub struct DestinationState {
    /// Its share.
    pub weight: u32,
    /// The policy between the two.
    pub policy: Arc<PolicySpec>,
    /// The backend.
    pub backend: Arc<BackendState>,
    /// The breaker of the route or the backend.
    pub breaker: Option<Arc<BreakerState>>,
    /// With the scope Endpoint, a breaker for each endpoint, in their order; else empty.
    pub endpoint_breakers: Vec<Arc<BreakerState>>,
    /// The admission control.
    pub admission_control: Option<Arc<AdmissionState>>,
    /// The concurrency limit.
    pub concurrency_limit: Option<Arc<ConcurrencyLimitState>>,
    /// The retry budget.
    pub retry_budget: Arc<RetryBudgetState>,
    /// The hedging.
    pub hedge: Option<Arc<HedgeState>>,
    /// Its earlier answers.
    pub stale_cache: Option<Arc<StaleState>>,
}

impl DestinationState {
    /// The limits, if they act.
    #[must_use]
    pub fn enforced_limits(&self) -> Option<&ConnectionLimitsSpec> {
        self.policy
            .connection_limits
            .as_ref()
            .filter(|limits| limits.mode == Mode::Enforce)
    }

    /// Takes one retry out of the budget; `held` is the request's place among those that retry.
    ///
    /// # Errors
    /// [`NoRetry`] says what there is none of.
    pub fn withdraw_retry(
        &self,
        retry_guard: &mut Option<RetryGuard>,
        now: Instant,
    ) -> Result<(), RetryRejection> {
        self.retry_budget.try_withdraw(
            retry_guard,
            self.enforced_limits()
                .map_or(DEFAULT_MAX_PARALLEL_RETRIES, |limits| {
                    limits.max_parallel_retries
                }),
            now,
        )
    }
}

impl ActivePolicy {
    /// Nothing is in force.
    #[must_use]
    pub fn empty() -> Self {
        let telemetry = crate::telemetry::Telemetry::new(
            crate::telemetry::access_log::AccessLogWriter::disabled(),
            || std::time::UNIX_EPOCH,
        );
        Self {
            generation: 0,
            snapshot: Arc::new(PolicySnapshot {
                hash: String::new(),
                listeners: Vec::new(),
                backends: Vec::new(),
                routes: Vec::new(),
                rules_by_listener: Vec::new(),
                lifecycle: crate::policy::snapshot::LifecycleSpec::default(),
                recoveries: Vec::new(),
                global_rate_limit: None,
                protection: None,
                access_log: AccessLogSpec {
                    is_enabled: false,
                    sampling_ratio: 0.0,
                    always_logged_statuses: crate::policy::units::StatusSet::default(),
                },
            }),
            routes: Vec::new(),
            backends: Vec::new(),
            breakers: Vec::new(),
            concurrency_limits: Vec::new(),
            admission_controls: Vec::new(),
            stale_caches: Vec::new(),
            retry_budgets: Vec::new(),
            remote_limits: None,
            unrouted_metrics: Arc::new(RouteMetrics::new(&telemetry.metrics, "", "")),
        }
    }
}

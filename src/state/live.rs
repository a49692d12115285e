//! The policies of the moment, joined with their state: what a request pins.

use std::{sync::Arc, time::Instant};

use tokio::sync::Semaphore;

use super::{
    admission::AdmissionState,
    backend::BackendState,
    breaker::BreakerState,
    budget::{BudgetState, NoRetry, RetryGuard},
    hedge::HedgeState,
    limit::LimitState,
    rate_limit::RateLimitState,
    remote_limits::RemoteLimits,
    stale::StaleState,
};
use crate::{
    policy::snapshot::{AccessLogSpec, LimitSpec, PolicySpec, RouteSpec, Snapshot},
    resilience::{Mode, ratio::Ratio},
    telemetry::metrics::RouteMetrics,
};

/// Requests that may be retrying at once where no policy bounds them: what `connectionLimits` says by default.
const USUAL_PARALLEL_RETRIES: u32 = 204;

/// What is in force.
#[derive(Debug)]
pub struct Live {
    /// Counted from 1; 0 is nothing.
    pub generation: u64,
    /// The policies.
    pub snapshot: Arc<Snapshot>,
    /// The routes, in the order of the policies.
    pub routes: Vec<RouteState>,
    /// The backends, in the order of the policies.
    pub backends: Vec<Arc<BackendState>>,
    /// Every breaker, by name.
    pub breakers: Vec<Arc<BreakerState>>,
    /// Every concurrency limit, by name.
    pub limits: Vec<Arc<LimitState>>,
    /// Every admission control, by name.
    pub admissions: Vec<Arc<AdmissionState>>,
    /// Every store of earlier answers, by name.
    pub stale: Vec<Arc<StaleState>>,
    /// Every retry budget, by name.
    pub budgets: Vec<Arc<BudgetState>>,
    /// Who keeps the limits of all instances, if it is somebody else.
    pub remote_limits: Option<Arc<RemoteLimits>>,
    /// The metrics of requests that no route took.
    pub unrouted: Arc<RouteMetrics>,
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
    pub aside: Vec<DestinationState>,
    /// Who gets copies.
    pub mirrors: Vec<MirrorState>,
    /// Places of requests under a fault on purpose.
    pub faults: Arc<Semaphore>,
    /// The handles of its metrics.
    pub metrics: Arc<RouteMetrics>,
}

/// Who gets copies of a route's requests.
#[derive(Debug)]
pub struct MirrorState {
    /// The index of its backend among those aside.
    pub aside: usize,
    /// How many of them.
    pub share: Ratio,
    /// Places of copies that are out.
    pub places: Arc<Semaphore>,
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
    pub admission: Option<Arc<AdmissionState>>,
    /// The concurrency limit.
    pub limit: Option<Arc<LimitState>>,
    /// The retry budget.
    pub budget: Arc<BudgetState>,
    /// The hedging.
    pub hedge: Option<Arc<HedgeState>>,
    /// Its earlier answers.
    pub stale: Option<Arc<StaleState>>,
}

impl DestinationState {
    /// The limits, if they act.
    #[must_use]
    pub fn enforced_limits(&self) -> Option<&LimitSpec> {
        self.policy
            .limits
            .as_ref()
            .filter(|limits| limits.mode == Mode::Enforce)
    }

    /// Takes one retry out of the budget; `held` is the request's place among those that retry.
    ///
    /// # Errors
    /// [`NoRetry`] says what there is none of.
    pub fn withdraw_retry(
        &self,
        held: &mut Option<RetryGuard>,
        now: Instant,
    ) -> Result<(), NoRetry> {
        self.budget.try_withdraw(
            held,
            self.enforced_limits()
                .map_or(USUAL_PARALLEL_RETRIES, |limits| limits.max_parallel_retries),
            now,
        )
    }
}

impl Live {
    /// Nothing is in force.
    #[must_use]
    pub fn nothing() -> Self {
        let telemetry = crate::telemetry::Telemetry::new(
            crate::telemetry::access_log::AccessLog::off(),
            || std::time::UNIX_EPOCH,
        );
        Self {
            generation: 0,
            snapshot: Arc::new(Snapshot {
                hash: String::new(),
                listeners: Vec::new(),
                backends: Vec::new(),
                routes: Vec::new(),
                rules: Vec::new(),
                lifecycle: crate::policy::snapshot::LifecycleSpec::default(),
                recoveries: Vec::new(),
                global_rate_limit: None,
                protection: None,
                access_log: AccessLogSpec {
                    is_on: false,
                    sampling: 0.0,
                    always: crate::policy::units::StatusSet::default(),
                },
            }),
            routes: Vec::new(),
            backends: Vec::new(),
            breakers: Vec::new(),
            limits: Vec::new(),
            admissions: Vec::new(),
            stale: Vec::new(),
            budgets: Vec::new(),
            remote_limits: None,
            unrouted: Arc::new(RouteMetrics::new(&telemetry.metrics, "", "")),
        }
    }
}

//! The policies in force, joined with their state.
//!
//! A request loads one [`ActivePolicy`] and uses it until it ends, even if a reload replaces it
//! meanwhile. Each route holds direct references to the state of its policies, so that a
//! request needs no lookup by name. This module does not create or retain that state;
//! [`crate::state::registry`] does.

use std::{sync::Arc, time::Instant};

use tokio::sync::Semaphore;

use crate::{
    policy::{
        sections::{PolicySpec, connection_limits::ConnectionLimitsSpec},
        snapshot::{AccessLogSpec, PolicySnapshot, RouteSpec},
    },
    resilience::{Mode, ratio::Ratio},
    state::{
        policies::{
            DestinationPolicyStates, PolicyStates,
            breaker::BreakerState,
            rate_limit::RateLimitState,
            remote_limits::RemoteLimits,
            retry_budget::{RetryBudgetState, RetryGuard, RetryRejection},
        },
        topology::backend::BackendState,
    },
    telemetry::route_metrics::RouteMetrics,
};

/// Maximum number of requests that retry at once where no policy enforces another limit. It
/// equals the default of `connectionLimits.maxParallelRetries`, a fifth of 1024 requests.
const DEFAULT_MAX_PARALLEL_RETRIES: u32 = 204;

/// Policies in force, and the state that belongs to them.
#[derive(Debug)]
pub struct ActivePolicy {
    /// Generation of the policy set, counted from 1; 0 means that no policies are loaded.
    pub generation: u64,
    /// Compiled policies, which never change.
    pub snapshot: Arc<PolicySnapshot>,
    /// Routes, in the order of [`PolicySnapshot::routes`].
    pub routes: Vec<RouteState>,
    /// Backends, in the order of [`PolicySnapshot::backends`].
    pub backends: Vec<Arc<BackendState>>,
    /// All circuit breakers, sorted by name, including the one of a remote rate limit engine.
    pub breakers: Vec<Arc<BreakerState>>,
    /// States of all other policies between routes and backends.
    pub policy_states: PolicyStates,
    /// All retry budgets, sorted by name.
    pub retry_budgets: Vec<Arc<RetryBudgetState>>,
    /// Remote engine of the global rate limits; `None` if the policies configure none.
    pub remote_limits: Option<Arc<RemoteLimits>>,
    /// Metrics of requests that match no route.
    pub unrouted_metrics: Arc<RouteMetrics>,
}

/// Route with the state of its policies.
#[derive(Debug)]
pub struct RouteState {
    /// Compiled policy of the route.
    pub spec: RouteSpec,
    /// Token buckets of the rate limit rules, in the order of the rules.
    pub rate_limits: Vec<Arc<RateLimitState>>,
    /// Backends among which requests are distributed by weight; empty for a redirect.
    pub destinations: Vec<DestinationState>,
    /// Backends of fallbacks and mirrors, to which requests can be sent in addition.
    pub auxiliary_backends: Vec<DestinationState>,
    /// Mirrors that receive copies of requests.
    pub mirrors: Vec<MirrorState>,
    /// Permits for requests with an injected fault, which bound their number.
    pub fault_permits: Arc<Semaphore>,
    /// Handles of the metrics of the route.
    pub metrics: Arc<RouteMetrics>,
}

/// Mirror of a route, to which copies of requests are sent.
#[derive(Debug)]
pub struct MirrorState {
    /// Index of the backend of the mirror in [`RouteState::auxiliary_backends`].
    pub auxiliary_index: usize,
    /// Share of requests of which a copy is sent.
    pub share: Ratio,
    /// Permits for copies in flight. Without a free permit no copy is sent.
    pub permits: Arc<Semaphore>,
}

/// Backend of a route, with the effective policy between the two and its state.
#[derive(Debug)]
pub struct DestinationState {
    /// Weight relative to the other destinations of the route.
    pub weight: u32,
    /// Effective policy between the route and the backend.
    pub policy: Arc<PolicySpec>,
    /// Backend with its endpoints, shared by all routes.
    pub backend: Arc<BackendState>,
    /// Circuit breaker of scope `Route` or `Backend`; `None` if there is none.
    pub breaker: Option<Arc<BreakerState>>,
    /// Circuit breakers of scope `Endpoint`, in the order of the endpoints; otherwise empty.
    pub endpoint_breakers: Vec<Arc<BreakerState>>,
    /// Retry budget, which every destination has.
    pub retry_budget: Arc<RetryBudgetState>,
    /// States of the optional policies.
    pub policy_states: DestinationPolicyStates,
}

impl DestinationState {
    /// Returns the connection limits if the policy enforces them, and `None` in shadow mode.
    #[must_use]
    pub fn enforced_limits(&self) -> Option<&ConnectionLimitsSpec> {
        self.policy
            .connection_limits
            .as_ref()
            .filter(|limits| limits.mode == Mode::Enforce)
    }

    /// Withdraws one retry from the budget.
    ///
    /// `retry_guard` counts the request among those that retry. The first call sets it.
    ///
    /// # Errors
    /// Returns a [`RetryRejection`] if the budget is exhausted or too many requests retry at
    /// once.
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
    /// Returns the backend with this name.
    #[must_use]
    pub fn find_backend(&self, name: &str) -> Option<&Arc<BackendState>> {
        let mut backends = self.backends.iter();
        backends.find(|backend| *backend.spec.name == *name)
    }

    /// Creates a set of generation 0 without listeners, routes and backends.
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
                route_tables: Vec::new(),
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
            policy_states: PolicyStates::default(),
            retry_budgets: Vec::new(),
            remote_limits: None,
            unrouted_metrics: Arc::new(RouteMetrics::new(&telemetry.metrics, "", "")),
        }
    }
}

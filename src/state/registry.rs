//! Joins a policy set with the state that belongs to it, by name.
//!
//! A new set retains the state that it names: breaker states and counts, tokens of buckets,
//! requests in flight and knowledge about endpoints. If a changed field makes state meaningless,
//! only that state is reset.
//!
//! State that the new set does not name is removed. Requests in flight hold references to it until
//! they end. Metric handles of routes and backends are never removed.
//!
//! The module does not know which changes require a reset; each state decides that itself.

mod endpoint_table;

use std::{collections::HashMap, sync::Arc, time::Instant};

use tokio::sync::Semaphore;

use crate::{
    policy::{
        document::{BreakerScope, Direction},
        sections::circuit_breaker::BreakerSpec,
        snapshot::{
            BackendSpec, Destination, Discovery, EndpointSpec, MirrorSpec, PolicySnapshot,
            RateLimitEngineSpec, RouteActionSpec, RouteSpec,
        },
    },
    state::{
        active_policy::{ActivePolicy, DestinationState, MirrorState, RouteState},
        policies::{
            PolicyTables, breaker::BreakerState, rate_limit::RateLimitState,
            remote_limits::RemoteLimits, retry_budget::RetryBudgetState,
        },
        registry::endpoint_table::EndpointTable,
        table::{BuildContext, Reconfigure, Table},
        topology::backend::{BackendState, RetainedBackendState},
    },
    telemetry::{Telemetry, backend_metrics::BackendMetrics, route_metrics::RouteMetrics},
};

/// Maximum number of copies in flight per route and mirror. It bounds their memory. Requests of the
/// route never wait for a copy.
const MAX_MIRRORED_REQUESTS_IN_FLIGHT: usize = 128;

/// State of all policies, backends and endpoints, by name.
#[derive(Debug)]
pub struct Registry {
    telemetry: Arc<Telemetry>,
    /// Availability zone of this instance; `None` if it is not configured.
    zone: Option<Arc<str>>,
    /// Time from which stored times of rate limits count.
    epoch: Instant,
    breakers: Table<BreakerState>,
    retry_budgets: Table<RetryBudgetState>,
    policies: PolicyTables,
    rate_limits: Table<RateLimitState>,
    /// Permits for requests with an injected fault, by route.
    fault_permits: Table<SizedSemaphore>,
    /// Permits for mirrored requests, by route and mirror (`ROUTE/BACKEND`).
    mirror_permits: Table<SizedSemaphore>,
    endpoints: EndpointTable,
    route_metrics: HashMap<Arc<str>, Arc<RouteMetrics>>,
    backend_metrics: HashMap<Arc<str>, Arc<BackendMetrics>>,
    remote_limits: Option<Arc<RemoteLimits>>,
}

/// Semaphore with its total number of permits.
#[derive(Debug)]
struct SizedSemaphore(Arc<Semaphore>, usize);

impl Reconfigure for SizedSemaphore {
    type Spec = usize;

    fn create(_: &Arc<str>, permits: &usize, _: BuildContext<'_>) -> Self {
        Self(Arc::new(Semaphore::new(*permits)), *permits)
    }

    fn reconfigure(&self, permits: &usize, _: BuildContext<'_>) -> Option<Self> {
        (self.1 != *permits).then(|| Self(Arc::new(Semaphore::new(*permits)), *permits))
    }
}

impl Registry {
    /// Creates a registry without state.
    pub(super) fn new(telemetry: Arc<Telemetry>, zone: Option<Arc<str>>, now: Instant) -> Self {
        Self {
            telemetry,
            zone,
            epoch: now,
            breakers: Table::default(),
            retry_budgets: Table::default(),
            policies: PolicyTables::default(),
            rate_limits: Table::default(),
            fault_permits: Table::default(),
            mirror_permits: Table::default(),
            endpoints: EndpointTable::default(),
            route_metrics: HashMap::new(),
            backend_metrics: HashMap::new(),
            remote_limits: None,
        }
    }

    /// Joins a policy set with its state, and removes state that the set does not name.
    pub(super) fn build_active_policy(
        &mut self,
        snapshot: Arc<PolicySnapshot>,
        generation: u64,
        now: Instant,
    ) -> ActivePolicy {
        let (telemetry, zone) = (self.telemetry.clone(), self.zone.clone());
        let mut builder = ActivePolicyBuilder {
            context: BuildContext {
                telemetry: &telemetry,
                now,
                epoch: self.epoch,
            },
            registry: self,
            zone: zone.as_deref(),
        };
        let backends: Vec<Arc<BackendState>> = snapshot
            .backends
            .iter()
            .map(|backend| builder.build_backend(backend))
            .collect();
        let routes: Vec<RouteState> = snapshot
            .routes
            .iter()
            .map(|route| builder.build_route(route, &backends))
            .collect();
        let remote_limits = builder.ensure_remote_limits(&snapshot);
        distribute_rate_limits(&snapshot, &routes, &backends);
        let unrouted = builder.ensure_route_metrics("none", Direction::Inbound);
        self.remove_unused(&backends);
        ActivePolicy {
            generation,
            snapshot,
            routes,
            backends,
            breakers: self.breakers.sorted(),
            policy_states: self.policies.sorted(),
            retry_budgets: self.retry_budgets.sorted(),
            remote_limits,
            unrouted_metrics: unrouted,
        }
    }

    /// Stores the endpoints that discovery found for a backend, and returns whether they changed.
    ///
    /// Endpoints from a source that the policy no longer names are ignored.
    pub(super) fn record_discovered_endpoints(
        &mut self,
        backend: &Arc<str>,
        source: &Discovery,
        endpoints: Vec<EndpointSpec>,
    ) -> bool {
        self.endpoints.record_discovered(backend, source, endpoints)
    }

    fn remove_unused(&mut self, backends: &[Arc<BackendState>]) {
        for breaker in self.breakers.remove_unused() {
            self.telemetry.metrics.clear_breaker_state(&breaker);
        }
        self.policies.remove_unused();
        self.retry_budgets.remove_unused();
        self.fault_permits.remove_unused();
        self.mirror_permits.remove_unused();
        self.rate_limits.remove_unused();
        self.endpoints.remove_unused(backends);
    }
}

struct ActivePolicyBuilder<'r> {
    registry: &'r mut Registry,
    context: BuildContext<'r>,
    zone: Option<&'r str>,
}

impl ActivePolicyBuilder<'_> {
    fn build_backend(&mut self, spec: &BackendSpec) -> Arc<BackendState> {
        let (counters, members) = self.registry.endpoints.ensure(spec, self.context.now);
        let metrics = self
            .registry
            .backend_metrics
            .entry(spec.name.clone())
            .or_insert_with(|| {
                Arc::new(BackendMetrics::new(
                    &self.context.telemetry.metrics,
                    &spec.name,
                ))
            });
        let telemetry = self.context.telemetry.clone();
        Arc::new(BackendState::new(
            spec.clone(),
            members,
            RetainedBackendState {
                metrics: metrics.clone(),
                counters,
            },
            telemetry,
            self.zone,
        ))
    }

    fn build_route(&mut self, spec: &RouteSpec, backends: &[Arc<BackendState>]) -> RouteState {
        let destinations = match &spec.action {
            RouteActionSpec::Forward(destinations) => destinations
                .iter()
                .map(|destination| {
                    self.build_destination(destination, &backends[destination.backend])
                })
                .collect(),
            RouteActionSpec::Redirect(_) => Vec::new(),
        };
        let auxiliary_backends: Vec<DestinationState> = spec
            .auxiliary_backends
            .iter()
            .map(|destination| self.build_destination(destination, &backends[destination.backend]))
            .collect();
        let mirrors = spec
            .mirrors
            .iter()
            .filter_map(|mirror| self.build_mirror(spec, mirror, &auxiliary_backends));
        let mirrors = mirrors.collect();
        let max_active_faults = spec
            .fault_injection
            .as_ref()
            .map_or(0, |fault| fault.max_active_faults as usize);
        let fault_permits =
            self.registry
                .fault_permits
                .ensure(&spec.name, &max_active_faults, self.context);
        let rate_limits = spec
            .rate_limits
            .rules
            .iter()
            .map(|rule| {
                let name = format!("{}/{}", spec.name, rule.name).into();
                self.registry.rate_limits.ensure(&name, rule, self.context)
            })
            .collect();
        RouteState {
            rate_limits,
            destinations,
            auxiliary_backends,
            mirrors,
            fault_permits: fault_permits.0.clone(),
            metrics: self.ensure_route_metrics(&spec.name, spec.direction),
            spec: spec.clone(),
        }
    }

    /// Builds the state of a mirror; `None` if its backend does not exist.
    fn build_mirror(
        &mut self,
        route: &RouteSpec,
        mirror: &MirrorSpec,
        auxiliary_backends: &[DestinationState],
    ) -> Option<MirrorState> {
        let name = format!("{}/{}", route.name, mirror.backend).into();
        let permits = self.registry.mirror_permits.ensure(
            &name,
            &MAX_MIRRORED_REQUESTS_IN_FLIGHT,
            self.context,
        );
        let auxiliary_index = auxiliary_backends
            .iter()
            .position(|auxiliary| auxiliary.backend.spec.name == mirror.backend)?;
        Some(MirrorState {
            auxiliary_index,
            share: mirror.share,
            permits: permits.0.clone(),
        })
    }

    fn ensure_route_metrics(&mut self, name: &str, direction: Direction) -> Arc<RouteMetrics> {
        let direction = match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let make = || {
            Arc::new(RouteMetrics::new(
                &self.context.telemetry.metrics,
                name,
                direction,
            ))
        };
        self.registry
            .route_metrics
            .entry(format!("{direction}/{name}").into())
            .or_insert_with(make)
            .clone()
    }

    /// Builds the state of a backend of a route.
    fn build_destination(
        &mut self,
        destination: &Destination,
        backend: &Arc<BackendState>,
    ) -> DestinationState {
        let policy = &destination.policy;
        let (breaker, endpoint_breakers) = policy.circuit_breaker.as_ref().map_or_else(
            || (None, Vec::new()),
            |spec| self.ensure_breakers(spec, backend),
        );
        DestinationState {
            weight: destination.weight,
            policy: policy.clone(),
            backend: backend.clone(),
            breaker,
            endpoint_breakers,
            retry_budget: self.registry.retry_budgets.ensure(
                &policy.retry_constraint.name,
                &policy.retry_constraint,
                self.context,
            ),
            policy_states: self.registry.policies.ensure(policy, self.context),
        }
    }

    /// Returns the breaker of scope `Backend` or `Route`, or those of the endpoints.
    fn ensure_breakers(
        &mut self,
        spec: &BreakerSpec,
        backend: &BackendState,
    ) -> (Option<Arc<BreakerState>>, Vec<Arc<BreakerState>>) {
        let context = self.context;
        let mut ensure = |name: &Arc<str>| self.registry.breakers.ensure(name, spec, context);
        match spec.scope {
            BreakerScope::Backend | BreakerScope::Route => (Some(ensure(&spec.name)), Vec::new()),
            BreakerScope::Endpoint => {
                let endpoints = backend.endpoints.iter();
                let breakers = endpoints
                    .map(|endpoint| ensure(&format!("{}/{}", spec.name, endpoint.label).into()));
                (None, breakers.collect())
            }
        }
    }

    /// Returns the remote engine, if one is configured. An unchanged engine keeps its connection.
    fn ensure_remote_limits(&mut self, snapshot: &PolicySnapshot) -> Option<Arc<RemoteLimits>> {
        let spec = match snapshot
            .global_rate_limit
            .as_ref()
            .map(|global| &global.engine)
        {
            Some(RateLimitEngineSpec::Remote(spec)) => Some(spec),
            Some(RateLimitEngineSpec::Replicas { .. }) | None => None,
        };
        let previous = self.registry.remote_limits.take();
        let Some(spec) = spec else {
            previous.inspect(|previous| previous.retire());
            return None;
        };
        let make = || {
            Arc::new(RemoteLimits::new(
                spec.clone(),
                self.context.telemetry,
                self.context.now,
            ))
        };
        let limits = previous
            .filter(|previous| previous.spec() == spec)
            .unwrap_or_else(make);
        let breaker = limits.breaker();
        self.registry
            .breakers
            .insert(breaker.name().clone(), breaker.clone());
        self.registry.remote_limits = Some(limits.clone());
        Some(limits)
    }
}

/// Sets the number of instances among which each global rate limit is divided. Without an engine
/// that counts the instances, local buckets have the full size.
fn distribute_rate_limits(
    snapshot: &PolicySnapshot,
    routes: &[RouteState],
    backends: &[Arc<BackendState>],
) {
    let instances = match snapshot
        .global_rate_limit
        .as_ref()
        .map(|global| &global.engine)
    {
        Some(RateLimitEngineSpec::Replicas { backend, .. }) => {
            u32::try_from(backends[*backend].endpoints.len()).unwrap_or(u32::MAX)
        }
        Some(RateLimitEngineSpec::Remote(_)) | None => 1,
    };
    for limit in routes.iter().flat_map(|route| &route.rate_limits) {
        limit.set_instances(if limit.rule().is_global { instances } else { 1 });
    }
}

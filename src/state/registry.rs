//! State by identity, and the joining of a new set of policies with it.
//!
//! What keeps its name keeps its history: breaker state and counts, the fill of buckets, what is in flight, what is known of
//! endpoints. What a changed field makes meaningless begins anew, and nothing else. What no set names any more is dropped once
//! its last request is done.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tokio::sync::Semaphore;

use crate::{
    policy::{
        document::{BreakerScope, Direction},
        snapshot::{
            BackendSpec, Destination, Discovery, EndpointAddress, EndpointSpec, MirrorSpec,
            PolicySnapshot, RateLimitEngineSpec, RouteActionSpec, RouteSpec,
        },
    },
    resilience::Mode,
    state::{
        active_policy::{ActivePolicy, DestinationState, MirrorState, RouteState},
        policies::{
            admission_control::AdmissionState, breaker::BreakerState,
            concurrency_limit::ConcurrencyLimitState, hedge::HedgeState,
            rate_limit::RateLimitState, remote_limits::RemoteLimits,
            retry_budget::RetryBudgetState, stale::StaleState,
        },
        table::{BuildContext, Reconfigure, Table},
        topology::{
            backend::BackendState,
            endpoint::{BackendCounters, EndpointState},
        },
    },
    telemetry::{Telemetry, backend_metrics::BackendMetrics, route_metrics::RouteMetrics},
};

/// Copies of a route's requests that are out at once to one mirror. It bounds their memory, and they never make the route's own requests wait.
const MAX_MIRRORED_REQUESTS_IN_FLIGHT: usize = 128;

/// State by identity.
#[derive(Debug, Default)]
pub struct Registry {
    breakers: Table<BreakerState>,
    concurrency_limits: Table<ConcurrencyLimitState>,
    retry_budgets: Table<RetryBudgetState>,
    admission_controls: Table<AdmissionState>,
    rate_limits: Table<RateLimitState>,
    hedges: Table<HedgeState>,
    stale_caches: Table<StaleState>,
    /// Permits for requests with an injected fault, by route.
    fault_permits: Table<SizedSemaphore>,
    /// Permits for mirrored requests, by route and mirror (`ROUTE/BACKEND`).
    mirror_permits: Table<SizedSemaphore>,
    endpoints: HashMap<(Arc<str>, EndpointAddress), Arc<EndpointState>>,
    /// The endpoints known last, by backend: written, or found where the policy said to look.
    known_endpoints: HashMap<Arc<str>, KnownEndpoints>,
    backend_counters: HashMap<Arc<str>, Arc<BackendCounters>>,
    route_metrics: HashMap<Arc<str>, Arc<RouteMetrics>>,
    backend_metrics: HashMap<Arc<str>, Arc<BackendMetrics>>,
    remote_limits: Option<Arc<RemoteLimits>>,
    next_endpoint_id: u64,
    epoch: Option<Instant>,
}

/// A semaphore with its number of permits.
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

#[derive(Debug)]
struct KnownEndpoints {
    source: Discovery,
    endpoints: Vec<EndpointSpec>,
    /// How outlier detection acted on them.
    outlier_mode: Option<Mode>,
}

impl Registry {
    /// Joins a set with the state that belongs to it, and forgets what it no longer names.
    pub(super) fn build_active_policy(
        &mut self,
        snapshot: Arc<PolicySnapshot>,
        generation: u64,
        telemetry: &Arc<Telemetry>,
        zone: Option<&str>,
        now: Instant,
    ) -> ActivePolicy {
        let mut builder = ActivePolicyBuilder {
            context: BuildContext {
                telemetry,
                now,
                epoch: *self.epoch.get_or_insert(now),
            },
            registry: self,
            zone,
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
        self.remove_unused(&backends, telemetry);
        ActivePolicy {
            generation,
            snapshot,
            routes,
            backends,
            breakers: self.breakers.sorted(),
            concurrency_limits: self.concurrency_limits.sorted(),
            admission_controls: self.admission_controls.sorted(),
            stale_caches: self.stale_caches.sorted(),
            retry_budgets: self.retry_budgets.sorted(),
            remote_limits,
            unrouted_metrics: unrouted,
        }
    }

    /// Takes what discovery found of a backend; whether it is another than before. What was found elsewhere than the policy says by now
    /// comes too late.
    pub(super) fn record_discovered_endpoints(
        &mut self,
        backend: &Arc<str>,
        source: &Discovery,
        endpoints: Vec<EndpointSpec>,
    ) -> bool {
        let Some(known) = self
            .known_endpoints
            .get_mut(backend)
            .filter(|known| known.source == *source && known.endpoints != endpoints)
        else {
            return false;
        };
        known.endpoints = endpoints;
        true
    }

    /// The endpoints of a backend: those that are written, or else those known last. Where they are to be looked for may have changed;
    /// until the first answer from there, those known from before are better than none.
    fn current_endpoints(&mut self, spec: &BackendSpec) -> Vec<EndpointSpec> {
        let static_endpoints = match &spec.discovery {
            Discovery::Static(endpoints) => Some(endpoints.clone()),
            Discovery::File(_) | Discovery::Dns(_) => None,
        };
        let (source, outlier_mode) = (
            spec.discovery.clone(),
            spec.outlier_detection.as_ref().map(|outlier| outlier.mode),
        );
        let known = self.known_endpoints.remove(&spec.name);
        if known
            .as_ref()
            .is_some_and(|known| known.outlier_mode != outlier_mode)
        {
            // Another judge: what was only watched has not been ejected, and what nobody watches is not out.
            let backend_endpoints = self
                .endpoints
                .iter()
                .filter(|((backend, _), _)| *backend == spec.name);
            backend_endpoints.for_each(|(_, endpoint)| endpoint.uneject());
        }
        let endpoints = static_endpoints
            .or(known.map(|known| known.endpoints))
            .unwrap_or_default();
        self.known_endpoints.insert(
            spec.name.clone(),
            KnownEndpoints {
                source,
                endpoints: endpoints.clone(),
                outlier_mode,
            },
        );
        endpoints
    }

    fn remove_unused(&mut self, backends: &[Arc<BackendState>], telemetry: &Telemetry) {
        for breaker in self.breakers.remove_unused() {
            telemetry.metrics.clear_breaker_state(&breaker);
        }
        self.concurrency_limits.remove_unused();
        self.admission_controls.remove_unused();
        self.retry_budgets.remove_unused();
        self.fault_permits.remove_unused();
        self.mirror_permits.remove_unused();
        self.stale_caches.remove_unused();
        self.hedges.remove_unused();
        self.rate_limits.remove_unused();
        let backend_names: HashSet<&str> =
            backends.iter().map(|backend| &*backend.spec.name).collect();
        self.backend_counters
            .retain(|name, _| backend_names.contains(&**name));
        self.known_endpoints
            .retain(|name, _| backend_names.contains(&**name));
        let active_ids: HashSet<u64> = backends
            .iter()
            .flat_map(|backend| &backend.endpoints)
            .map(|endpoint| endpoint.id)
            .collect();
        self.endpoints.retain(|_, endpoint| {
            let is_active = active_ids.contains(&endpoint.id);
            if !is_active {
                endpoint.retire();
            }
            is_active
        });
    }
}

struct ActivePolicyBuilder<'r> {
    registry: &'r mut Registry,
    context: BuildContext<'r>,
    zone: Option<&'r str>,
}

impl ActivePolicyBuilder<'_> {
    fn build_backend(&mut self, spec: &BackendSpec) -> Arc<BackendState> {
        let counters = self
            .registry
            .backend_counters
            .entry(spec.name.clone())
            .or_default()
            .clone();
        // Those that a backend begins with have run for who knows how long; who comes later is new.
        let has_known_endpoints = self
            .registry
            .endpoints
            .keys()
            .any(|(backend, _)| *backend == spec.name);
        let now = self.context.now;
        let mut members = Vec::new();
        for endpoint in self.registry.current_endpoints(spec) {
            let id = self.registry.next_endpoint_id;
            self.registry.next_endpoint_id += 1;
            let make = || {
                Arc::new(EndpointState::new(
                    endpoint.address.clone(),
                    id,
                    counters.clone(),
                    has_known_endpoints,
                    now,
                ))
            };
            let state = self
                .registry
                .endpoints
                .entry((spec.name.clone(), endpoint.address.clone()))
                .or_insert_with(make)
                .clone();
            members.push((endpoint, state));
        }
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
            metrics.clone(),
            counters,
            telemetry,
            self.zone,
        ))
    }

    fn build_route(&mut self, spec: &RouteSpec, backends: &[Arc<BackendState>]) -> RouteState {
        let destinations = match &spec.action {
            RouteActionSpec::Forward(destinations) => destinations
                .iter()
                .map(|destination| {
                    self.build_destination(spec, destination, &backends[destination.backend], false)
                })
                .collect(),
            RouteActionSpec::Redirect(_) => Vec::new(),
        };
        let auxiliary_backends: Vec<DestinationState> = spec
            .auxiliary_backends
            .iter()
            .map(|destination| {
                self.build_destination(spec, destination, &backends[destination.backend], true)
            })
            .collect();
        let auxiliary_index = |mirror: &MirrorSpec| {
            auxiliary_backends.iter().position(|auxiliary_backends| {
                auxiliary_backends.backend.spec.name == mirror.backend
            })
        };
        let mirrors = spec.mirrors.iter().filter_map(|mirror| {
            let name = format!("{}/{}", spec.name, mirror.backend).into();
            let permits = self.registry.mirror_permits.ensure(
                &name,
                &MAX_MIRRORED_REQUESTS_IN_FLIGHT,
                self.context,
            );
            Some(MirrorState {
                auxiliary_index: auxiliary_index(mirror)?,
                share: mirror.share,
                permits: permits.0.clone(),
            })
        });
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

    /// A backend of a route; one that is asked aside has a breaker of its own even where the route has one.
    fn build_destination(
        &mut self,
        route: &RouteSpec,
        destination: &Destination,
        backend: &Arc<BackendState>,
        is_auxiliary: bool,
    ) -> DestinationState {
        let policy = &destination.policy;
        let (mut breaker, mut endpoint_breakers) = (None, Vec::new());
        match &policy.breaker {
            None => {}
            Some(spec) => match spec.scope {
                BreakerScope::Backend => {
                    breaker = Some(
                        self.registry
                            .breakers
                            .ensure(&spec.name, spec, self.context),
                    )
                }
                BreakerScope::Route => {
                    breaker = Some(self.registry.breakers.ensure(
                        &route_breaker_name(route, backend, is_auxiliary),
                        spec,
                        self.context,
                    ))
                }
                BreakerScope::Endpoint => {
                    endpoint_breakers = backend
                        .endpoints
                        .iter()
                        .map(|endpoint| {
                            self.registry.breakers.ensure(
                                &format!("{}/{}", spec.name, endpoint.label).into(),
                                spec,
                                self.context,
                            )
                        })
                        .collect();
                }
            },
        }
        let (registry, context) = (&mut *self.registry, self.context);
        DestinationState {
            weight: destination.weight,
            policy: policy.clone(),
            backend: backend.clone(),
            breaker,
            endpoint_breakers,
            admission_control: policy.admission_control.as_ref().map(|spec| {
                registry
                    .admission_controls
                    .ensure(&spec.name, spec, context)
            }),
            concurrency_limit: policy.connection_limits.as_ref().map(|spec| {
                registry
                    .concurrency_limits
                    .ensure(&spec.name, spec, context)
            }),
            retry_budget: registry.retry_budgets.ensure(
                &policy.retry_budget.name,
                &policy.retry_budget,
                context,
            ),
            hedge: policy
                .hedging
                .as_ref()
                .map(|spec| registry.hedges.ensure(&spec.name, spec, context)),
            stale_cache: policy
                .stale_if_error
                .as_ref()
                .map(|spec| registry.stale_caches.ensure(&spec.name, spec, context)),
        }
    }

    /// The same engine stays connected.
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

/// Tells limits of all instances how many there are; without an engine that counts them, buckets here are whole.
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

/// A route's breaker watches the route; with several backends it watches each of them by itself, and so it does of those aside.
fn route_breaker_name(route: &RouteSpec, backend: &BackendState, is_auxiliary: bool) -> Arc<str> {
    match &route.action {
        RouteActionSpec::Forward(destinations) if is_auxiliary || destinations.len() > 1 => {
            format!("route:{}/{}", route.name, backend.spec.name).into()
        }
        RouteActionSpec::Forward(_) | RouteActionSpec::Redirect(_) => {
            format!("route:{}", route.name).into()
        }
    }
}

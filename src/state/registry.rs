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
            BackendSpec, BreakerSpec, Destination, Discovery, EndpointAddress, EndpointSpec,
            MirrorSpec, PolicySnapshot, RateLimitEngineSpec, RouteActionSpec, RouteSpec,
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
        topology::{
            backend::BackendState,
            endpoint::{BackendCounters, EndpointState},
        },
    },
    telemetry::{
        Telemetry,
        metrics::{BackendMetrics, RouteMetrics},
    },
};

/// Copies of a route's requests that are out at once to one mirror. It bounds their memory, and they never make the route's own requests wait.
const MAX_MIRRORED_REQUESTS_IN_FLIGHT: usize = 128;

/// State by identity.
#[derive(Debug, Default)]
pub struct Registry {
    breakers: HashMap<Arc<str>, Arc<BreakerState>>,
    concurrency_limits: HashMap<Arc<str>, Arc<ConcurrencyLimitState>>,
    retry_budgets: HashMap<Arc<str>, Arc<RetryBudgetState>>,
    admission_controls: HashMap<Arc<str>, Arc<AdmissionState>>,
    rate_limits: HashMap<Arc<str>, Arc<RateLimitState>>,
    hedges: HashMap<Arc<str>, Arc<HedgeState>>,
    stale_caches: HashMap<Arc<str>, Arc<StaleState>>,
    /// Places of requests under a fault, and of copies: by route, and the backend of the copies.
    semaphores: HashMap<(Arc<str>, Arc<str>), SizedSemaphore>,
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

/// Places, and how many there are in all.
#[derive(Debug)]
struct SizedSemaphore(Arc<Semaphore>, usize);

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
            registry: self,
            telemetry,
            zone,
            now,
            used: HashSet::new(),
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
        let used = builder.used;
        self.remove_unused(&used, &backends, telemetry);
        let mut active_policy = ActivePolicy {
            generation,
            snapshot,
            routes,
            backends,
            breakers: self.breakers.values().cloned().collect(),
            concurrency_limits: self.concurrency_limits.values().cloned().collect(),
            admission_controls: self.admission_controls.values().cloned().collect(),
            stale_caches: self.stale_caches.values().cloned().collect(),
            retry_budgets: self.retry_budgets.values().cloned().collect(),
            remote_limits,
            unrouted_metrics: unrouted,
        };
        active_policy
            .breakers
            .sort_by(|a, b| a.name().cmp(b.name()));
        active_policy
            .concurrency_limits
            .sort_by(|a, b| a.name().cmp(b.name()));
        active_policy
            .admission_controls
            .sort_by(|a, b| a.name().cmp(b.name()));
        active_policy
            .stale_caches
            .sort_by(|a, b| a.name().cmp(b.name()));
        active_policy
            .retry_budgets
            .sort_by(|a, b| a.name().cmp(b.name()));
        active_policy
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

    fn remove_unused(
        &mut self,
        used: &HashSet<StateKey>,
        backends: &[Arc<BackendState>],
        telemetry: &Telemetry,
    ) {
        self.breakers.retain(|name, _| {
            let is_used = used.contains(&StateKey::Breaker(name.clone()));
            if !is_used {
                telemetry.metrics.clear_breaker_state(name);
            }
            is_used
        });
        self.concurrency_limits
            .retain(|name, _| used.contains(&StateKey::ConcurrencyLimit(name.clone())));
        self.admission_controls
            .retain(|name, _| used.contains(&StateKey::AdmissionControl(name.clone())));
        self.retry_budgets
            .retain(|name, _| used.contains(&StateKey::RetryBudget(name.clone())));
        self.semaphores
            .retain(|key, _| used.contains(&StateKey::Semaphore(key.clone())));
        self.stale_caches
            .retain(|name, _| used.contains(&StateKey::StaleCache(name.clone())));
        self.hedges
            .retain(|name, _| used.contains(&StateKey::Hedge(name.clone())));
        self.rate_limits
            .retain(|name, _| used.contains(&StateKey::RateLimit(name.clone())));
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

/// What a set makes use of.
#[derive(Debug, PartialEq, Eq, Hash)]
enum StateKey {
    Breaker(Arc<str>),
    ConcurrencyLimit(Arc<str>),
    RetryBudget(Arc<str>),
    AdmissionControl(Arc<str>),
    RateLimit(Arc<str>),
    Hedge(Arc<str>),
    StaleCache(Arc<str>),
    Semaphore((Arc<str>, Arc<str>)),
}

struct ActivePolicyBuilder<'r> {
    registry: &'r mut Registry,
    telemetry: &'r Arc<Telemetry>,
    zone: Option<&'r str>,
    now: Instant,
    used: HashSet<StateKey>,
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
        let now = self.now;
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
            .or_insert_with(|| Arc::new(BackendMetrics::new(&self.telemetry.metrics, &spec.name)));
        let telemetry = self.telemetry.clone();
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
            let permits = self.ensure_semaphore(
                spec,
                mirror.backend.clone(),
                MAX_MIRRORED_REQUESTS_IN_FLIGHT,
            );
            Some(MirrorState {
                auxiliary_index: auxiliary_index(mirror)?,
                share: mirror.share,
                permits,
            })
        });
        let mirrors = mirrors.collect();
        let fault_permits = self.ensure_semaphore(
            spec,
            Arc::default(),
            spec.fault_injection
                .as_ref()
                .map_or(0, |fault| fault.max_active_faults as usize),
        );
        let rate_limits = spec
            .rate_limits
            .rules
            .iter()
            .map(|rule| {
                self.ensure_rate_limit(&format!("{}/{}", spec.name, rule.name).into(), rule)
            })
            .collect();
        RouteState {
            rate_limits,
            destinations,
            auxiliary_backends,
            mirrors,
            fault_permits,
            metrics: self.ensure_route_metrics(&spec.name, spec.direction),
            spec: spec.clone(),
        }
    }

    /// Places of a route by what they are for; other ones if there are to be more or fewer.
    fn ensure_semaphore(
        &mut self,
        route: &RouteSpec,
        purpose: Arc<str>,
        permits: usize,
    ) -> Arc<Semaphore> {
        let key = (route.name.clone(), purpose);
        self.used.insert(StateKey::Semaphore(key.clone()));
        let make = || SizedSemaphore(Arc::new(Semaphore::new(permits)), permits);
        let semaphore = self.registry.semaphores.entry(key).or_insert_with(make);
        if semaphore.1 != permits {
            *semaphore = make();
        }
        semaphore.0.clone()
    }

    fn ensure_route_metrics(&mut self, name: &str, direction: Direction) -> Arc<RouteMetrics> {
        let direction = match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let make = || Arc::new(RouteMetrics::new(&self.telemetry.metrics, name, direction));
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
                BreakerScope::Backend => breaker = Some(self.ensure_breaker(&spec.name, spec)),
                BreakerScope::Route => {
                    breaker =
                        Some(self.ensure_breaker(
                            &route_breaker_name(route, backend, is_auxiliary),
                            spec,
                        ))
                }
                BreakerScope::Endpoint => {
                    endpoint_breakers = backend
                        .endpoints
                        .iter()
                        .map(|endpoint| {
                            self.ensure_breaker(
                                &format!("{}/{}", spec.name, endpoint.label).into(),
                                spec,
                            )
                        })
                        .collect();
                }
            },
        }
        let admission = policy.admission_control.as_ref().map(|spec| {
            self.used
                .insert(StateKey::AdmissionControl(spec.name.clone()));
            let make = || {
                Arc::new(AdmissionState::new(
                    spec.name.clone(),
                    spec.config,
                    spec.mode,
                    self.now,
                ))
            };
            let admission = self
                .registry
                .admission_controls
                .entry(spec.name.clone())
                .or_insert_with(make);
            admission.reconfigure(spec.config, spec.mode, self.now);
            admission.clone()
        });
        let concurrency_limit = policy.connection_limits.as_ref().map(|spec| {
            self.used
                .insert(StateKey::ConcurrencyLimit(spec.name.clone()));
            let make = || {
                Arc::new(ConcurrencyLimitState::new(
                    spec.name.clone(),
                    spec.concurrency,
                    spec.mode,
                    spec.adaptive,
                    self.now,
                ))
            };
            let concurrency_limit = self
                .registry
                .concurrency_limits
                .entry(spec.name.clone())
                .or_insert_with(make);
            concurrency_limit.reconfigure(spec.concurrency, spec.mode, spec.adaptive, self.now);
            concurrency_limit.clone()
        });
        let hedge = policy.hedging.as_ref().map(|spec| {
            self.used.insert(StateKey::Hedge(spec.name.clone()));
            let make = || Arc::new(HedgeState::new(spec.config, self.now));
            let hedge = self
                .registry
                .hedges
                .entry(spec.name.clone())
                .or_insert_with(make);
            hedge.reconfigure(spec.config);
            hedge.clone()
        });
        let stale_cache = policy.stale_if_error.as_ref().map(|spec| {
            self.used.insert(StateKey::StaleCache(spec.name.clone()));
            let stale_cache = self
                .registry
                .stale_caches
                .entry(spec.name.clone())
                .or_insert_with(|| Arc::new(StaleState::new(spec.name.clone(), spec.max_bytes)));
            stale_cache.reconfigure(spec.max_bytes);
            stale_cache.clone()
        });
        DestinationState {
            weight: destination.weight,
            policy: policy.clone(),
            backend: backend.clone(),
            breaker,
            endpoint_breakers,
            admission_control: admission,
            concurrency_limit,
            retry_budget: self.ensure_retry_budget(destination),
            hedge,
            stale_cache,
        }
    }

    fn ensure_breaker(&mut self, name: &Arc<str>, spec: &BreakerSpec) -> Arc<BreakerState> {
        self.used.insert(StateKey::Breaker(name.clone()));
        let make = || {
            Arc::new(BreakerState::new(
                name.clone(),
                spec.config,
                spec.mode,
                self.telemetry.clone(),
                self.now,
            ))
        };
        let breaker = self
            .registry
            .breakers
            .entry(name.clone())
            .or_insert_with(make);
        breaker.reconfigure(spec.config, spec.mode, self.now);
        breaker.clone()
    }

    /// A changed budget begins anew: what it has counted was counted over other intervals.
    fn ensure_retry_budget(&mut self, destination: &Destination) -> Arc<RetryBudgetState> {
        let spec = &destination.policy.retry_budget;
        self.used.insert(StateKey::RetryBudget(spec.name.clone()));
        let make = || {
            Arc::new(RetryBudgetState::new(
                spec.name.clone(),
                spec.config,
                self.now,
            ))
        };
        let budget = self
            .registry
            .retry_budgets
            .entry(spec.name.clone())
            .or_insert_with(make);
        if budget.config() != spec.config {
            *budget = make();
        }
        budget.clone()
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
        let make = || Arc::new(RemoteLimits::new(spec.clone(), self.telemetry, self.now));
        let limits = previous
            .filter(|previous| previous.spec() == spec)
            .unwrap_or_else(make);
        let breaker = limits.breaker();
        self.used.insert(StateKey::Breaker(breaker.name().clone()));
        self.registry
            .breakers
            .insert(breaker.name().clone(), breaker.clone());
        self.registry.remote_limits = Some(limits.clone());
        Some(limits)
    }

    fn ensure_rate_limit(
        &mut self,
        name: &Arc<str>,
        rule: &crate::policy::snapshot::RateLimitRuleSpec,
    ) -> Arc<RateLimitState> {
        self.used.insert(StateKey::RateLimit(name.clone()));
        let epoch = *self.registry.epoch.get_or_insert(self.now);
        let make = || {
            Arc::new(RateLimitState::new(
                name.clone(),
                rule.clone(),
                epoch,
                self.now,
            ))
        };
        let limit = self
            .registry
            .rate_limits
            .entry(name.clone())
            .or_insert_with(make);
        if limit.rule() != rule {
            *limit = Arc::new(limit.reconfigured(rule.clone(), self.now));
        }
        limit.clone()
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

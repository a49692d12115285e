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

use super::{
    admission::AdmissionState,
    backend::BackendState,
    breaker::BreakerState,
    budget::BudgetState,
    endpoint::{BackendCounters, EndpointState},
    hedge::HedgeState,
    limit::LimitState,
    live::{DestinationState, Live, MirrorState, RouteState},
    rate_limit::RateLimitState,
    remote_limits::RemoteLimits,
    stale::StaleState,
};
use crate::{
    policy::{
        document::{BreakerScope, Direction},
        snapshot::{
            ActionSpec, Address, BackendSpec, BreakerSpec, Destination, Discovery, EndpointSpec,
            EngineSpec, MirrorSpec, RouteSpec, Snapshot,
        },
    },
    resilience::Mode,
    telemetry::{
        Telemetry,
        metrics::{BackendMetrics, RouteMetrics},
    },
};

/// Copies of a route's requests that are out at once to one mirror. It bounds their memory, and they never make the route's own requests wait.
const MAX_COPIES: usize = 128;

/// State by identity.
#[derive(Debug, Default)]
pub struct Registry {
    breakers: HashMap<Arc<str>, Arc<BreakerState>>,
    limits: HashMap<Arc<str>, Arc<LimitState>>,
    budgets: HashMap<Arc<str>, Arc<BudgetState>>,
    admissions: HashMap<Arc<str>, Arc<AdmissionState>>,
    rate_limits: HashMap<Arc<str>, Arc<RateLimitState>>,
    hedges: HashMap<Arc<str>, Arc<HedgeState>>,
    stale: HashMap<Arc<str>, Arc<StaleState>>,
    /// Places of requests under a fault, and of copies: by route, and the backend of the copies.
    places: HashMap<(Arc<str>, Arc<str>), Places>,
    endpoints: HashMap<(Arc<str>, Address), Arc<EndpointState>>,
    /// The endpoints known last, by backend: written, or found where the policy said to look.
    known: HashMap<Arc<str>, Known>,
    counters: HashMap<Arc<str>, Arc<BackendCounters>>,
    routes: HashMap<Arc<str>, Arc<RouteMetrics>>,
    backends: HashMap<Arc<str>, Arc<BackendMetrics>>,
    remote_limits: Option<Arc<RemoteLimits>>,
    next_endpoint: u64,
    epoch: Option<Instant>,
}

/// Places, and how many there are in all.
#[derive(Debug)]
struct Places(Arc<Semaphore>, usize);

#[derive(Debug)]
struct Known {
    source: Discovery,
    endpoints: Vec<EndpointSpec>,
    /// How outlier detection acted on them.
    ejects: Option<Mode>,
}

impl Registry {
    /// Joins a set with the state that belongs to it, and forgets what it no longer names.
    pub(super) fn join(
        &mut self,
        snapshot: Arc<Snapshot>,
        generation: u64,
        telemetry: &Arc<Telemetry>,
        zone: Option<&str>,
        now: Instant,
    ) -> Live {
        let mut joining = Joining {
            registry: self,
            telemetry,
            zone,
            now,
            used: HashSet::new(),
        };
        let backends: Vec<Arc<BackendState>> = snapshot
            .backends
            .iter()
            .map(|backend| joining.backend(backend))
            .collect();
        let routes: Vec<RouteState> = snapshot
            .routes
            .iter()
            .map(|route| joining.route(route, &backends))
            .collect();
        let remote_limits = joining.remote_limits(&snapshot);
        divide(&snapshot, &routes, &backends);
        let unrouted = joining.route_metrics("none", Direction::Inbound);
        let used = joining.used;
        self.forget(&used, &backends, telemetry);
        let mut live = Live {
            generation,
            snapshot,
            routes,
            backends,
            breakers: self.breakers.values().cloned().collect(),
            limits: self.limits.values().cloned().collect(),
            admissions: self.admissions.values().cloned().collect(),
            stale: self.stale.values().cloned().collect(),
            budgets: self.budgets.values().cloned().collect(),
            remote_limits,
            unrouted,
        };
        live.breakers.sort_by(|a, b| a.name().cmp(b.name()));
        live.limits.sort_by(|a, b| a.name().cmp(b.name()));
        live.admissions.sort_by(|a, b| a.name().cmp(b.name()));
        live.stale.sort_by(|a, b| a.name().cmp(b.name()));
        live.budgets.sort_by(|a, b| a.name().cmp(b.name()));
        live
    }

    /// Takes what discovery found of a backend; whether it is another than before. What was found elsewhere than the policy says by now
    /// comes too late.
    pub(super) fn discovered(
        &mut self,
        backend: &Arc<str>,
        source: &Discovery,
        endpoints: Vec<EndpointSpec>,
    ) -> bool {
        let Some(known) = self
            .known
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
    fn members(&mut self, spec: &BackendSpec) -> Vec<EndpointSpec> {
        let written = match &spec.discovery {
            Discovery::Static(endpoints) => Some(endpoints.clone()),
            Discovery::File(_) | Discovery::Dns(_) => None,
        };
        let (source, ejects) = (
            spec.discovery.clone(),
            spec.outlier.as_ref().map(|outlier| outlier.mode),
        );
        let known = self.known.remove(&spec.name);
        if known.as_ref().is_some_and(|known| known.ejects != ejects) {
            // Another judge: what was only watched has not been ejected, and what nobody watches is not out.
            let of_backend = self
                .endpoints
                .iter()
                .filter(|((backend, _), _)| *backend == spec.name);
            of_backend.for_each(|(_, endpoint)| endpoint.pardon());
        }
        let endpoints = written
            .or(known.map(|known| known.endpoints))
            .unwrap_or_default();
        self.known.insert(
            spec.name.clone(),
            Known {
                source,
                endpoints: endpoints.clone(),
                ejects,
            },
        );
        endpoints
    }

    fn forget(
        &mut self,
        used: &HashSet<Use>,
        backends: &[Arc<BackendState>],
        telemetry: &Telemetry,
    ) {
        self.breakers.retain(|name, _| {
            let is_used = used.contains(&Use::Breaker(name.clone()));
            if !is_used {
                telemetry.metrics.forget_breaker(name);
            }
            is_used
        });
        self.limits
            .retain(|name, _| used.contains(&Use::Limit(name.clone())));
        self.admissions
            .retain(|name, _| used.contains(&Use::Admission(name.clone())));
        self.budgets
            .retain(|name, _| used.contains(&Use::Budget(name.clone())));
        self.places
            .retain(|key, _| used.contains(&Use::Places(key.clone())));
        self.stale
            .retain(|name, _| used.contains(&Use::Stale(name.clone())));
        self.hedges
            .retain(|name, _| used.contains(&Use::Hedge(name.clone())));
        self.rate_limits
            .retain(|name, _| used.contains(&Use::RateLimit(name.clone())));
        let named: HashSet<&str> = backends.iter().map(|backend| &*backend.spec.name).collect();
        self.counters.retain(|name, _| named.contains(&**name));
        self.known.retain(|name, _| named.contains(&**name));
        let living: HashSet<u64> = backends
            .iter()
            .flat_map(|backend| &backend.endpoints)
            .map(|endpoint| endpoint.id)
            .collect();
        self.endpoints.retain(|_, endpoint| {
            let lives = living.contains(&endpoint.id);
            if !lives {
                endpoint.retire();
            }
            lives
        });
    }
}

/// What a set makes use of.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Use {
    Breaker(Arc<str>),
    Limit(Arc<str>),
    Budget(Arc<str>),
    Admission(Arc<str>),
    RateLimit(Arc<str>),
    Hedge(Arc<str>),
    Stale(Arc<str>),
    Places((Arc<str>, Arc<str>)),
}

struct Joining<'r> {
    registry: &'r mut Registry,
    telemetry: &'r Arc<Telemetry>,
    zone: Option<&'r str>,
    now: Instant,
    used: HashSet<Use>,
}

impl Joining<'_> {
    fn backend(&mut self, spec: &BackendSpec) -> Arc<BackendState> {
        let counters = self
            .registry
            .counters
            .entry(spec.name.clone())
            .or_default()
            .clone();
        // Those that a backend begins with have run for who knows how long; who comes later is new.
        let is_served = self
            .registry
            .endpoints
            .keys()
            .any(|(backend, _)| *backend == spec.name);
        let now = self.now;
        let mut members = Vec::new();
        for endpoint in self.registry.members(spec) {
            let id = self.registry.next_endpoint;
            self.registry.next_endpoint += 1;
            let make = || {
                Arc::new(EndpointState::new(
                    endpoint.address.clone(),
                    id,
                    counters.clone(),
                    is_served,
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
            .backends
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

    fn route(&mut self, spec: &RouteSpec, backends: &[Arc<BackendState>]) -> RouteState {
        let destinations = match &spec.action {
            ActionSpec::Forward(destinations) => destinations
                .iter()
                .map(|to| self.destination(spec, to, &backends[to.backend], false))
                .collect(),
            ActionSpec::Redirect(_) => Vec::new(),
        };
        let aside: Vec<DestinationState> = spec
            .aside
            .iter()
            .map(|to| self.destination(spec, to, &backends[to.backend], true))
            .collect();
        let of = |mirror: &MirrorSpec| {
            aside
                .iter()
                .position(|aside| aside.backend.spec.name == mirror.backend)
        };
        let mirrors = spec.mirrors.iter().filter_map(|mirror| {
            let places = self.places(spec, mirror.backend.clone(), MAX_COPIES);
            Some(MirrorState {
                aside: of(mirror)?,
                share: mirror.share,
                places,
            })
        });
        let mirrors = mirrors.collect();
        let faults = self.places(
            spec,
            Arc::default(),
            spec.fault
                .as_ref()
                .map_or(0, |fault| fault.max_active as usize),
        );
        let rate_limits = spec
            .rate_limits
            .rules
            .iter()
            .map(|rule| self.rate_limit(&format!("{}/{}", spec.name, rule.name).into(), rule))
            .collect();
        RouteState {
            rate_limits,
            destinations,
            aside,
            mirrors,
            faults,
            metrics: self.route_metrics(&spec.name, spec.direction),
            spec: spec.clone(),
        }
    }

    /// Places of a route by what they are for; other ones if there are to be more or fewer.
    fn places(&mut self, route: &RouteSpec, what: Arc<str>, count: usize) -> Arc<Semaphore> {
        let key = (route.name.clone(), what);
        self.used.insert(Use::Places(key.clone()));
        let make = || Places(Arc::new(Semaphore::new(count)), count);
        let places = self.registry.places.entry(key).or_insert_with(make);
        if places.1 != count {
            *places = make();
        }
        places.0.clone()
    }

    fn route_metrics(&mut self, name: &str, direction: Direction) -> Arc<RouteMetrics> {
        let direction = match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let make = || Arc::new(RouteMetrics::new(&self.telemetry.metrics, name, direction));
        self.registry
            .routes
            .entry(format!("{direction}/{name}").into())
            .or_insert_with(make)
            .clone()
    }

    /// A backend of a route; one that is asked aside has a breaker of its own even where the route has one.
    fn destination(
        &mut self,
        route: &RouteSpec,
        to: &Destination,
        backend: &Arc<BackendState>,
        is_aside: bool,
    ) -> DestinationState {
        let policy = &to.policy;
        let (mut breaker, mut endpoint_breakers) = (None, Vec::new());
        match &policy.breaker {
            None => {}
            Some(spec) => match spec.scope {
                BreakerScope::Backend => breaker = Some(self.breaker(&spec.name, spec)),
                BreakerScope::Route => {
                    breaker = Some(self.breaker(&route_breaker(route, backend, is_aside), spec))
                }
                BreakerScope::Endpoint => {
                    endpoint_breakers = backend
                        .endpoints
                        .iter()
                        .map(|endpoint| {
                            self.breaker(&format!("{}/{}", spec.name, endpoint.label).into(), spec)
                        })
                        .collect();
                }
            },
        }
        let admission = policy.admission.as_ref().map(|spec| {
            self.used.insert(Use::Admission(spec.name.clone()));
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
                .admissions
                .entry(spec.name.clone())
                .or_insert_with(make);
            admission.reconfigure(spec.config, spec.mode, self.now);
            admission.clone()
        });
        let limit = policy.limits.as_ref().map(|spec| {
            self.used.insert(Use::Limit(spec.name.clone()));
            let make = || {
                Arc::new(LimitState::new(
                    spec.name.clone(),
                    spec.concurrency,
                    spec.mode,
                    spec.adaptive,
                    self.now,
                ))
            };
            let limit = self
                .registry
                .limits
                .entry(spec.name.clone())
                .or_insert_with(make);
            limit.reconfigure(spec.concurrency, spec.mode, spec.adaptive, self.now);
            limit.clone()
        });
        let hedge = policy.hedging.as_ref().map(|spec| {
            self.used.insert(Use::Hedge(spec.name.clone()));
            let make = || Arc::new(HedgeState::new(spec.config, self.now));
            let hedge = self
                .registry
                .hedges
                .entry(spec.name.clone())
                .or_insert_with(make);
            hedge.reconfigure(spec.config);
            hedge.clone()
        });
        let stale = policy.stale.as_ref().map(|spec| {
            self.used.insert(Use::Stale(spec.name.clone()));
            let stale = self
                .registry
                .stale
                .entry(spec.name.clone())
                .or_insert_with(|| Arc::new(StaleState::new(spec.name.clone(), spec.max_bytes)));
            stale.reconfigure(spec.max_bytes);
            stale.clone()
        });
        DestinationState {
            weight: to.weight,
            policy: policy.clone(),
            backend: backend.clone(),
            breaker,
            endpoint_breakers,
            admission,
            limit,
            budget: self.budget(to),
            hedge,
            stale,
        }
    }

    fn breaker(&mut self, name: &Arc<str>, spec: &BreakerSpec) -> Arc<BreakerState> {
        self.used.insert(Use::Breaker(name.clone()));
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
    fn budget(&mut self, to: &Destination) -> Arc<BudgetState> {
        let spec = &to.policy.budget;
        self.used.insert(Use::Budget(spec.name.clone()));
        let make = || Arc::new(BudgetState::new(spec.name.clone(), spec.config, self.now));
        let budget = self
            .registry
            .budgets
            .entry(spec.name.clone())
            .or_insert_with(make);
        if budget.config() != spec.config {
            *budget = make();
        }
        budget.clone()
    }

    /// The same engine stays connected.
    fn remote_limits(&mut self, snapshot: &Snapshot) -> Option<Arc<RemoteLimits>> {
        let spec = match snapshot
            .global_rate_limit
            .as_ref()
            .map(|global| &global.engine)
        {
            Some(EngineSpec::Remote(spec)) => Some(spec),
            Some(EngineSpec::Replicas { .. }) | None => None,
        };
        let last = self.registry.remote_limits.take();
        let Some(spec) = spec else {
            last.inspect(|last| last.retire());
            return None;
        };
        let make = || Arc::new(RemoteLimits::new(spec.clone(), self.telemetry, self.now));
        let limits = last.filter(|last| last.spec() == spec).unwrap_or_else(make);
        let breaker = limits.breaker();
        self.used.insert(Use::Breaker(breaker.name().clone()));
        self.registry
            .breakers
            .insert(breaker.name().clone(), breaker.clone());
        self.registry.remote_limits = Some(limits.clone());
        Some(limits)
    }

    fn rate_limit(
        &mut self,
        name: &Arc<str>,
        rule: &crate::policy::snapshot::RateRuleSpec,
    ) -> Arc<RateLimitState> {
        self.used.insert(Use::RateLimit(name.clone()));
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
fn divide(snapshot: &Snapshot, routes: &[RouteState], backends: &[Arc<BackendState>]) {
    let instances = match snapshot
        .global_rate_limit
        .as_ref()
        .map(|global| &global.engine)
    {
        Some(EngineSpec::Replicas { backend, .. }) => {
            u32::try_from(backends[*backend].endpoints.len()).unwrap_or(u32::MAX)
        }
        Some(EngineSpec::Remote(_)) | None => 1,
    };
    for limit in routes.iter().flat_map(|route| &route.rate_limits) {
        limit.divide(if limit.rule().is_global { instances } else { 1 });
    }
}

/// A route's breaker watches the route; with several backends it watches each of them by itself, and so it does of those aside.
fn route_breaker(route: &RouteSpec, backend: &BackendState, is_aside: bool) -> Arc<str> {
    match &route.action {
        ActionSpec::Forward(several) if is_aside || several.len() > 1 => {
            format!("route:{}/{}", route.name, backend.spec.name).into()
        }
        ActionSpec::Forward(_) | ActionSpec::Redirect(_) => format!("route:{}", route.name).into(),
    }
}

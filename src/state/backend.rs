//! A backend as of one set of policies, joined with its endpoints: who may be picked, and who is.
//!
//! Which endpoints are available changes rarely and is asked all the time. So the answer is worked out when it changes, into lists
//! that a pick only draws from: a pick costs the same for three endpoints and for ten thousand, whatever is unhealthy, ejected
//! or in another zone. A change is noticed by its number: whoever picks next works the lists out anew.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;

use super::endpoint::{BackendCounters, EndpointState};
use crate::{
    policy::snapshot::{BackendSpec, Balancer, EndpointSpec},
    resilience::{
        Mode,
        balance::{
            self,
            levels::{self, Level},
            ring::{self, Ring},
        },
        health::Health,
        outlier::Standing,
    },
    telemetry::{Telemetry, event::Event, metrics::BackendMetrics},
};

/// A backend as of one set of policies.
#[derive(Debug)]
pub struct BackendState {
    /// What the policy says.
    pub spec: BackendSpec,
    /// The endpoints.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// What was said of them where they come from, in the same order.
    pub places: Vec<EndpointSpec>,
    /// The handles of its metrics.
    pub metrics: Arc<BackendMetrics>,
    /// What is counted over all reloads.
    pub counters: Arc<BackendCounters>,
    pub(super) telemetry: Arc<Telemetry>,
    /// By endpoint: its share of the heaviest one's weight.
    weights: Vec<f64>,
    /// The sum of the shares.
    all_weights: f64,
    tiers: Vec<Tier>,
    selection: ArcSwap<Selection>,
}

/// Endpoints of one priority, here or elsewhere.
#[derive(Debug)]
struct Tier {
    members: Vec<usize>,
    /// Only for consistent hashing.
    ring: Ring,
}

/// Who may be picked, as of one version.
#[derive(Debug, Default)]
struct Selection {
    version: u64,
    /// By tier.
    tiers: Vec<Open>,
    /// Endpoints that one request at a time may try.
    probation: Vec<usize>,
}

#[derive(Debug)]
struct Open {
    load: f64,
    is_panic: bool,
    members: Vec<usize>,
}

/// What a request asks of a pick.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// The hash of what binds it to an endpoint.
    pub key: Option<u64>,
    /// When it is made.
    pub now: Instant,
}

impl BackendState {
    /// Joins a backend with its endpoints; `zone` is where this instance is.
    #[must_use]
    pub fn new(
        spec: BackendSpec,
        members: Vec<(EndpointSpec, Arc<EndpointState>)>,
        metrics: Arc<BackendMetrics>,
        counters: Arc<BackendCounters>,
        telemetry: Arc<Telemetry>,
        zone: Option<&str>,
    ) -> Self {
        let (places, endpoints): (Vec<EndpointSpec>, Vec<_>) = members.into_iter().unzip();
        let heaviest = places.iter().map(|place| place.weight.get()).max().unwrap_or(1);
        let weights: Vec<f64> = places.iter().map(|place| f64::from(place.weight.get()) / f64::from(heaviest)).collect();
        let tiers = tiers(&spec, &places, &weights, zone);
        let backend = Self { all_weights: weights.iter().sum(), spec, endpoints, places, metrics, counters, telemetry, weights, tiers, selection: ArcSwap::default() };
        backend.review();
        backend
    }

    /// Picks an endpoint that is available and that `may` be picked. When too few are available, that is ignored.
    pub fn pick(&self, wish: Wish, may: impl Fn(usize) -> bool, mut dice: impl FnMut() -> f64) -> Option<usize> {
        let mut selection = self.selection.load();
        if selection.version != self.counters.version.load(Ordering::Acquire) {
            drop(selection);
            self.review();
            selection = self.selection.load();
        }
        let first = match selection.tiers.as_slice() {
            [] => return None,
            [_] => 0,
            tiers => draw_tier(tiers, dice()),
        };
        let order = std::iter::once(first).chain((0..selection.tiers.len()).filter(|tier| *tier != first));
        let mut picks = order.map(|tier| self.pick_in(&selection.tiers[tier], &self.tiers[tier].ring, wish, &may, &mut dice));
        picks.find_map(|picked| picked)
    }

    fn pick_in(&self, open: &Open, ring: &Ring, wish: Wish, may: &impl Fn(usize) -> bool, dice: &mut impl FnMut() -> f64) -> Option<usize> {
        let members = &open.members;
        let share = |member: usize| {
            let index = members[member];
            if may(index) { self.share(index, wish.now) } else { 0.0 }
        };
        let picked = match (&self.spec.balancer, wish.key) {
            (Balancer::LeastRequest, _) => {
                let cost = |member: usize| f64::from(self.endpoints[members[member]].in_flight()) / self.share(members[member], wish.now);
                balance::power_of_two(members.len(), share, cost, dice)
            }
            (Balancer::PeakEwma, _) => {
                let cost = |member: usize| {
                    let endpoint = &self.endpoints[members[member]];
                    endpoint.latency().cost(endpoint.in_flight(), self.share(members[member], wish.now), wish.now)
                };
                balance::power_of_two(members.len(), share, cost, dice)
            }
            (Balancer::RoundRobin, _) => balance::round_robin(members.len(), share, &mut || self.counters.turn.fetch_add(1, Ordering::Relaxed)),
            (Balancer::ConsistentHash { bound, .. }, Some(key)) => return self.pick_on_ring(open, ring, key, *bound, may),
            (Balancer::Random | Balancer::ConsistentHash { .. }, _) => balance::random(members.len(), share, dice),
        };
        picked.map(|member| members[member])
    }

    /// The key's endpoint, or the next on the ring that is available and not loaded above its bound.
    fn pick_on_ring(&self, open: &Open, ring: &Ring, key: u64, bound: f64, may: &impl Fn(usize) -> bool) -> Option<usize> {
        let accepts = |index: usize| (open.is_panic || self.is_available(index)) && may(index);
        let all = self.counters.in_flight.load(Ordering::Relaxed);
        let within = |index: usize| ring::is_within_bound(self.endpoints[index].in_flight(), all, self.weights[index] / self.all_weights, bound);
        ring.pick(key, |index| accepts(index) && within(index)).or_else(|| ring.pick(key, accepts))
    }

    /// An endpoint's weight as a share of the heaviest one's, and while it warms up a part of that.
    fn share(&self, index: usize, now: Instant) -> f64 {
        let weight = self.weights[index];
        self.spec.warm_up.as_ref().map_or(weight, |config| weight * self.endpoints[index].warmth(config, now))
    }

    /// Endpoints that one request at a time may try.
    pub(super) fn on_probation(&self) -> Vec<usize> {
        self.selection.load().probation.clone()
    }

    /// Whether any endpoint waits for a probe.
    pub(super) fn has_probation(&self) -> bool {
        !self.selection.load().probation.is_empty()
    }

    /// What is no longer looked at, no longer counts: without a check, its last result; without outlier detection, an ejection.
    fn is_available(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        let is_healthy = self.spec.check.is_none() || endpoint.health() != Health::Unhealthy;
        is_healthy && !(endpoint.is_out() && self.ejects())
    }

    /// Whether outlier detection acts.
    pub(super) fn ejects(&self) -> bool {
        self.spec.outlier.as_ref().is_some_and(|outlier| outlier.mode == Mode::Enforce)
    }

    /// How many endpoints may be picked.
    #[must_use]
    pub fn available(&self) -> usize {
        (0..self.endpoints.len()).filter(|index| self.is_available(*index)).count()
    }

    /// Whether availability is ignored now, for any of the endpoints.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.counters.is_panicking.load(Ordering::Relaxed)
    }

    /// Works out who may be picked.
    pub fn review(&self) {
        let version = self.counters.version.load(Ordering::Acquire);
        let levels = self.tiers.iter().map(|tier| Level { total: tier.members.len(), available: tier.members.iter().filter(|index| self.is_available(**index)).count() });
        let shares = levels::share(&levels.collect::<Vec<_>>(), self.spec.panic_threshold);
        let tiers = self.tiers.iter().zip(&shares).map(|(tier, share)| {
            let is_open = |index: &&usize| share.is_panic || self.is_available(**index);
            Open { load: share.load, is_panic: share.is_panic, members: tier.members.iter().filter(is_open).copied().collect() }
        });
        let is_on_probation = |index: &usize| self.ejects() && self.endpoints[*index].is_out() && matches!(self.endpoints[*index].host().standing(), Standing::Probation { .. });
        let probation = (0..self.endpoints.len()).filter(is_on_probation).collect();
        self.selection.store(Arc::new(Selection { version, tiers: tiers.collect(), probation }));
        let is_panicking = shares.iter().any(|share| share.is_panic && share.load > 0.0);
        if self.counters.is_panicking.swap(is_panicking, Ordering::Relaxed) != is_panicking {
            self.telemetry.emit(Event::PanicChanged { backend: self.spec.name.clone(), is_panicking });
        }
    }
}

fn draw_tier(tiers: &[Open], random: f64) -> usize {
    let mut left = random;
    for (index, tier) in tiers.iter().enumerate() {
        if left < tier.load {
            return index;
        }
        left -= tier.load;
    }
    0
}

/// Endpoints by priority, and within one those in this zone before the others, if there are enough of them here.
fn tiers(spec: &BackendSpec, places: &[EndpointSpec], weights: &[f64], zone: Option<&str>) -> Vec<Tier> {
    let is_here = |index: usize| places[index].zone.as_deref().is_some_and(|of| Some(of) == zone);
    let mut priorities: Vec<u32> = places.iter().map(|place| place.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for priority in priorities {
        let members = (0..places.len()).filter(|index| places[*index].priority == priority);
        let (here, elsewhere): (Vec<usize>, Vec<usize>) = members.partition(|index| is_here(*index));
        let prefers_here = spec.min_endpoints_in_zone.is_some_and(|minimum| here.len() >= minimum as usize);
        if prefers_here {
            groups.extend([here, elsewhere]);
        } else {
            groups.push([here, elsewhere].concat());
        }
    }
    let ring = |members: &[usize]| {
        let named = members.iter().map(|index| (u32::try_from(*index).unwrap_or(u32::MAX), places[*index].address.to_string(), weights[*index]));
        Ring::new(&named.collect::<Vec<_>>())
    };
    let hashes = matches!(spec.balancer, Balancer::ConsistentHash { .. });
    groups.retain(|members| !members.is_empty());
    groups.into_iter().map(|members| Tier { ring: if hashes { ring(&members) } else { Ring::default() }, members }).collect()
}

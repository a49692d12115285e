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
    tiers: Vec<Tier>,
    selection: ArcSwap<Selection>,
}

/// Endpoints of one priority, here or elsewhere.
#[derive(Debug)]
struct Tier {
    /// In order.
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
    /// Whether availability is ignored for any of the endpoints that are asked.
    is_panicking: bool,
    /// When the first of those that are left alone may come back.
    until: Option<Instant>,
}

/// Who may be picked of a tier.
#[derive(Debug)]
struct Open {
    /// Its share of the traffic.
    load: f64,
    /// In order.
    members: Vec<usize>,
    /// The largest weight among them.
    heaviest: f64,
    /// The sum of their weights.
    sum: f64,
    /// Which of them is warm first, and so, where all follow one curve, is as warm as any.
    warmest: usize,
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
        let tiers = tiers(&spec, &places, zone);
        let backend = Self {
            spec,
            endpoints,
            places,
            metrics,
            counters,
            telemetry,
            tiers,
            selection: ArcSwap::default(),
        };
        backend.review();
        backend
    }

    /// Picks an endpoint that is available and that `may` be picked. When too few are available, that is ignored.
    pub fn pick(
        &self,
        wish: Wish,
        may: impl Fn(usize) -> bool,
        mut dice: impl FnMut() -> f64,
    ) -> Option<usize> {
        let mut selection = self.selection.load();
        if selection.until.is_some_and(|until| wish.now >= until) {
            self.call_back(wish.now);
        }
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
        let order =
            std::iter::once(first).chain((0..selection.tiers.len()).filter(|tier| *tier != first));
        let mut picks = order.map(|tier| {
            self.pick_in(
                &selection.tiers[tier],
                &self.tiers[tier].ring,
                wish,
                &may,
                &mut dice,
            )
        });
        picks.find_map(|picked| picked)
    }

    fn pick_in(
        &self,
        open: &Open,
        ring: &Ring,
        wish: Wish,
        may: &impl Fn(usize) -> bool,
        dice: &mut impl FnMut() -> f64,
    ) -> Option<usize> {
        let members = &open.members;
        // When all are new, drawing in proportion to the warmest is as quick as when all are warm.
        let most = open.heaviest * self.warmest(open, wish.now);
        let relative =
            |index: usize| (self.weight(index) * self.warmth(index, wish.now) / most).min(1.0);
        // Who is new has little to do because it is asked little; that is no reason to ask it more.
        let is_held_back = |member: usize| self.warmth(members[member], wish.now) < 1.0;
        let share = |member: usize| {
            if may(members[member]) {
                relative(members[member])
            } else {
                0.0
            }
        };
        let picked = match (&self.spec.balancer, wish.key) {
            (Balancer::LeastRequest, _) => {
                let cost = |member: usize| {
                    f64::from(self.endpoints[members[member]].in_flight())
                        / relative(members[member])
                };
                balance::power_of_two(members.len(), share, is_held_back, cost, dice)
            }
            (Balancer::PeakEwma, _) => {
                let cost = |member: usize| {
                    let endpoint = &self.endpoints[members[member]];
                    endpoint.latency().cost(
                        endpoint.in_flight(),
                        relative(members[member]),
                        wish.now,
                    )
                };
                balance::power_of_two(members.len(), share, is_held_back, cost, dice)
            }
            (Balancer::RoundRobin, _) => balance::round_robin(
                members.len(),
                share,
                is_held_back,
                &mut || self.counters.turn.fetch_add(1, Ordering::Relaxed),
                dice,
            ),
            (Balancer::ConsistentHash { bound, .. }, Some(key)) => {
                return self.pick_on_ring(open, ring, key, *bound, may);
            }
            (Balancer::Random | Balancer::ConsistentHash { .. }, _) => {
                balance::random(members.len(), share, dice)
            }
        };
        picked.map(|member| members[member])
    }

    /// The key's endpoint, or the next on the ring that is available and not loaded above its bound.
    fn pick_on_ring(
        &self,
        open: &Open,
        ring: &Ring,
        key: u64,
        bound: f64,
        may: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let accepts = |index: usize| open.members.binary_search(&index).is_ok() && may(index);
        let all = self.counters.in_flight.load(Ordering::Relaxed);
        let within = |index: usize| {
            ring::is_within_bound(
                self.endpoints[index].in_flight(),
                all,
                self.weight(index) / open.sum,
                bound,
            )
        };
        ring.pick(key, |index| accepts(index) && within(index))
            .or_else(|| ring.pick(key, accepts))
    }

    /// How warm the warmest is. Where endpoints warm up by curves of their own, who is warm first may not be it yet.
    fn warmest(&self, open: &Open, now: Instant) -> f64 {
        if open.members.is_empty() {
            return 1.0;
        }
        let first = self.warmth(open.warmest, now);
        let has_own_curves = first < 1.0 && self.spec.warm_up.is_none();
        if has_own_curves {
            open.members
                .iter()
                .map(|index| self.warmth(*index, now))
                .fold(first, f64::max)
        } else {
            first
        }
    }

    fn weight(&self, index: usize) -> f64 {
        self.places[index].weight.get().into()
    }

    /// The part of its weight that an endpoint has while it warms up.
    fn warmth(&self, index: usize, now: Instant) -> f64 {
        self.endpoints[index].warmth(self.spec.warm_up.as_ref(), now)
    }

    /// The tiers, each with its members.
    pub(super) fn tiers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.tiers
            .iter()
            .map(|tier| tier.members.as_slice())
            .enumerate()
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
        self.is_healthy(index) && !(self.endpoints[index].is_out() && self.ejects())
    }

    /// Whether no check says otherwise.
    pub(super) fn is_healthy(&self, index: usize) -> bool {
        self.spec.check.is_none() || self.endpoints[index].health() != Health::Unhealthy
    }

    /// Whether outlier detection acts.
    pub(super) fn ejects(&self) -> bool {
        self.spec
            .outlier
            .as_ref()
            .is_some_and(|outlier| outlier.mode == Mode::Enforce)
    }

    /// How many endpoints may be picked and do not want to be left alone.
    #[must_use]
    pub fn available(&self) -> usize {
        self.available_endpoints().count()
    }

    /// Those.
    pub(super) fn available_endpoints(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        (0..self.endpoints.len())
            .filter(|index| self.is_available(*index) && !self.is_leaving(*index))
            .map(|index| &self.endpoints[index])
    }

    fn is_leaving(&self, index: usize) -> bool {
        self.endpoints[index].alone_until().is_some()
    }

    /// Ends the absence of those that wanted to be left alone until now.
    pub fn call_back(&self, now: Instant) {
        for endpoint in self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.alone_until().is_some_and(|until| now >= until))
        {
            if endpoint.come_back(now) {
                self.telemetry.emit(Event::EndpointReturned {
                    backend: self.spec.name.clone(),
                    endpoint: endpoint.label.clone(),
                    why: "its time is over",
                });
            }
        }
    }

    /// Whether availability is ignored now, for any of the endpoints.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.selection.load().is_panicking
    }

    /// Works out who may be picked. When all who could answer are ejected, ejections are ignored: each was spared when another was
    /// there, and those have left or fail their checks since. Who wants to be left alone is not counted at all, as if it had left
    /// already; but it still serves, and is better than none.
    pub fn review(&self) {
        let version = self.counters.version.load(Ordering::Acquire);
        let can_spare = self.available() > 0;
        let counts = |index: usize| !(can_spare && self.is_leaving(index));
        let present = || (0..self.endpoints.len()).filter(|index| counts(*index));
        let are_all_out = !present().any(|index| self.is_available(index))
            && present().any(|index| self.is_healthy(index));
        let is_available = |index: usize| {
            if are_all_out {
                self.is_healthy(index)
            } else {
                self.is_available(index)
            }
        };
        let count = |tier: &Tier, is: &dyn Fn(usize) -> bool| {
            tier.members
                .iter()
                .filter(|index| counts(**index) && is(**index))
                .count()
        };
        let levels = self.tiers.iter().map(|tier| Level {
            total: count(tier, &|_| true),
            available: count(tier, &is_available),
        });
        let shares = levels::share(&levels.collect::<Vec<_>>(), self.spec.panic_threshold);
        let tiers = self.tiers.iter().zip(&shares).map(|(tier, share)| {
            // Where nothing is sent to, only a retry comes: it finds those that are well.
            let ignores = share.is_panic && share.load > 0.0;
            let members: Vec<usize> = tier
                .members
                .iter()
                .copied()
                .filter(|index| counts(*index) && (ignores || is_available(*index)))
                .collect();
            let weights = members.iter().map(|index| self.weight(*index));
            let warmest = members
                .iter()
                .copied()
                .min_by_key(|index| self.endpoints[*index].warm_at(self.spec.warm_up.as_ref()))
                .unwrap_or_default();
            Open {
                load: share.load,
                heaviest: weights.clone().fold(0.0, f64::max),
                sum: weights.sum(),
                warmest,
                members,
            }
        });
        let is_on_probation = |index: &usize| {
            counts(*index)
                && self.ejects()
                && self.endpoints[*index].is_out()
                && matches!(
                    self.endpoints[*index].host().standing(),
                    Standing::Probation { .. }
                )
        };
        let probation = (0..self.endpoints.len()).filter(is_on_probation).collect();
        let is_panicking = are_all_out
            || shares
                .iter()
                .any(|share| share.is_panic && share.load > 0.0);
        let until = self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.alone_until())
            .min();
        self.selection.store(Arc::new(Selection {
            version,
            tiers: tiers.collect(),
            probation,
            is_panicking,
            until,
        }));
        if self
            .counters
            .is_panicking
            .swap(is_panicking, Ordering::Relaxed)
            != is_panicking
        {
            self.telemetry.emit(Event::PanicChanged {
                backend: self.spec.name.clone(),
                is_panicking,
            });
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
fn tiers(spec: &BackendSpec, places: &[EndpointSpec], zone: Option<&str>) -> Vec<Tier> {
    let is_here = |index: usize| {
        places[index]
            .zone
            .as_deref()
            .is_some_and(|of| Some(of) == zone)
    };
    let mut priorities: Vec<u32> = places.iter().map(|place| place.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for priority in priorities {
        let members = (0..places.len()).filter(|index| places[*index].priority == priority);
        let (here, elsewhere): (Vec<usize>, Vec<usize>) =
            members.partition(|index| is_here(*index));
        let prefers_here = spec
            .min_endpoints_in_zone
            .is_some_and(|minimum| here.len() >= minimum as usize);
        if prefers_here {
            groups.extend([here, elsewhere]);
        } else {
            let mut all = [here, elsewhere].concat();
            all.sort_unstable();
            groups.push(all);
        }
    }
    let ring = |members: &[usize]| {
        let named = members.iter().map(|index| {
            (
                u32::try_from(*index).unwrap_or(u32::MAX),
                places[*index].address.to_string(),
                f64::from(places[*index].weight.get()),
            )
        });
        Ring::new(&named.collect::<Vec<_>>())
    };
    let hashes = matches!(spec.balancer, Balancer::ConsistentHash { .. });
    groups.retain(|members| !members.is_empty());
    groups
        .into_iter()
        .map(|members| Tier {
            ring: if hashes {
                ring(&members)
            } else {
                Ring::default()
            },
            members,
        })
        .collect()
}

//! A backend of one policy set, joined with its endpoints.
//!
//! This module decides which endpoints can be selected, and which of them a request is sent to.
//! Each request needs that information, but it changes rarely. The selectable endpoints are
//! therefore computed after a change, into lists from which a selection draws. The number of
//! endpoints, or of unavailable ones, does not affect the cost of a selection. A change
//! increments a version, and the next selection computes the lists again.
//!
//! The module does not know circuit breakers or earlier attempts: the caller excludes endpoints
//! by a predicate. The algorithms are in [`crate::resilience::balance`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;

use crate::{
    policy::snapshot::{BackendSpec, EndpointSpec, LoadBalancerSpec},
    resilience::{
        Mode,
        balance::{
            self,
            hash_ring::{self, HashRing},
            priority_levels::{self, PriorityLevel},
        },
        health::Health,
        outlier::EjectionState,
    },
    state::topology::endpoint::{BackendCounters, EndpointState},
    telemetry::{Telemetry, backend_metrics::BackendMetrics, event::Event},
};

/// Backend of one policy set, with its endpoints.
#[derive(Debug)]
pub struct BackendState {
    /// Compiled policy of the backend.
    pub spec: BackendSpec,
    /// State of the endpoints, in the order of `endpoint_specs`.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// Weight, zone and priority of the endpoints, in the order of `endpoints`.
    pub endpoint_specs: Vec<EndpointSpec>,
    /// Handles of the metrics of the backend.
    pub metrics: Arc<BackendMetrics>,
    /// Counts that are retained across reloads.
    pub counters: Arc<BackendCounters>,
    pub(crate) telemetry: Arc<Telemetry>,
    tiers: Vec<Tier>,
    selectable: ArcSwap<SelectableEndpoints>,
}

/// Endpoints of one priority; if a zone is preferred, only those in it or outside it.
#[derive(Debug)]
struct Tier {
    /// Indices of the endpoints, in ascending order.
    members: Vec<usize>,
    /// Hash ring for consistent hashing; otherwise empty.
    ring: HashRing,
}

/// Endpoints that can be selected, computed for one version of availability.
#[derive(Debug, Default)]
struct SelectableEndpoints {
    /// Value of [`BackendCounters::availability_version`] for which this was computed.
    version: u64,
    /// Selectable endpoints of each tier, in the order of the tiers.
    tiers: Vec<SelectableTier>,
    /// Indices of the endpoints on probation, each of which may receive one probe at a time.
    probation: Vec<usize>,
    /// Whether availability is ignored for any endpoints that receive traffic.
    is_panicking: bool,
    /// Earliest time at which a draining mark of an endpoint expires.
    next_draining_end: Option<Instant>,
}

/// Selectable endpoints of one tier.
#[derive(Debug)]
struct SelectableTier {
    /// Share of the traffic that this tier receives, in `0.0..=1.0`.
    load_share: f64,
    /// Indices of the endpoints, in ascending order.
    members: Vec<usize>,
    /// Largest weight of a member, without its warm-up.
    max_weight: f64,
    /// Sum of the weights of all members, without their warm-up.
    weight_sum: f64,
    /// Index of the member that is warm first. If all follow one curve, no member is warmer.
    warmest_endpoint: usize,
}

/// Properties of a request on which the selection of an endpoint depends.
#[derive(Debug, Clone, Copy)]
pub struct SelectionRequest {
    /// Hash of the value that binds the request to an endpoint; `None` if it has no such value.
    pub hash_key: Option<u64>,
    /// Time at which the endpoint is selected.
    pub now: Instant,
}

impl BackendState {
    /// Joins a backend with its endpoints. `zone` is the availability zone of this instance.
    #[must_use]
    pub fn new(
        spec: BackendSpec,
        members: Vec<(EndpointSpec, Arc<EndpointState>)>,
        metrics: Arc<BackendMetrics>,
        counters: Arc<BackendCounters>,
        telemetry: Arc<Telemetry>,
        zone: Option<&str>,
    ) -> Self {
        let (endpoint_specs, endpoints): (Vec<EndpointSpec>, Vec<_>) = members.into_iter().unzip();
        let tiers = group_into_tiers(&spec, &endpoint_specs, zone);
        let backend = Self {
            spec,
            endpoints,
            endpoint_specs,
            metrics,
            counters,
            telemetry,
            tiers,
            selectable: ArcSwap::default(),
        };
        backend.refresh_selectable();
        backend
    }

    /// Selects an available endpoint that `is_allowed` accepts, and returns its index.
    ///
    /// If too few endpoints are available, availability is ignored. `random` returns numbers
    /// that are uniform in `0..1`.
    pub fn pick(
        &self,
        request: SelectionRequest,
        is_allowed: impl Fn(usize) -> bool,
        mut random: impl FnMut() -> f64,
    ) -> Option<usize> {
        let mut selectable = self.selectable.load();
        if selectable
            .next_draining_end
            .is_some_and(|draining_end| request.now >= draining_end)
        {
            self.clear_expired_draining(request.now);
        }
        if selectable.version != self.counters.availability_version.load(Ordering::Acquire) {
            drop(selectable);
            self.refresh_selectable();
            selectable = self.selectable.load();
        }
        let first = match selectable.tiers.as_slice() {
            [] => return None,
            [_] => 0,
            tiers => draw_tier(tiers, random()),
        };
        let tier_order =
            std::iter::once(first).chain((0..selectable.tiers.len()).filter(|tier| *tier != first));
        let mut picks = tier_order.map(|tier| {
            self.pick_in_tier(
                &selectable.tiers[tier],
                &self.tiers[tier].ring,
                request,
                &is_allowed,
                &mut random,
            )
        });
        picks.find_map(|picked| picked)
    }

    fn pick_in_tier(
        &self,
        selectable_tier: &SelectableTier,
        ring: &HashRing,
        request: SelectionRequest,
        is_allowed: &impl Fn(usize) -> bool,
        random: &mut impl FnMut() -> f64,
    ) -> Option<usize> {
        let members = &selectable_tier.members;
        // Weights are relative to the warmest member. Otherwise a selection would take many
        // draws while all members are new.
        let max_effective_weight =
            selectable_tier.max_weight * self.max_warm_up_factor(selectable_tier, request.now);
        let relative_weight = |index: usize| {
            (self.weight(index) * self.warm_up_factor(index, request.now) / max_effective_weight)
                .min(1.0)
        };
        // A warming endpoint has few requests in flight because it receives few. Its low load
        // must not attract more.
        let is_warming_up = |member: usize| self.warm_up_factor(members[member], request.now) < 1.0;
        let selection_weight = |member: usize| {
            if is_allowed(members[member]) {
                relative_weight(members[member])
            } else {
                0.0
            }
        };
        let picked = match (&self.spec.load_balancer, request.hash_key) {
            (LoadBalancerSpec::LeastRequest, _) => {
                let cost = |member: usize| {
                    f64::from(self.endpoints[members[member]].in_flight())
                        / relative_weight(members[member])
                };
                balance::pick_power_of_two(
                    members.len(),
                    selection_weight,
                    is_warming_up,
                    cost,
                    random,
                )
            }
            (LoadBalancerSpec::PeakEwma, _) => {
                let cost = |member: usize| {
                    let endpoint = &self.endpoints[members[member]];
                    endpoint.peak_ewma().cost(
                        endpoint.in_flight(),
                        relative_weight(members[member]),
                        request.now,
                    )
                };
                balance::pick_power_of_two(
                    members.len(),
                    selection_weight,
                    is_warming_up,
                    cost,
                    random,
                )
            }
            (LoadBalancerSpec::RoundRobin, _) => balance::pick_round_robin(
                members.len(),
                selection_weight,
                is_warming_up,
                &mut || {
                    self.counters
                        .round_robin_index
                        .fetch_add(1, Ordering::Relaxed)
                },
                random,
            ),
            (LoadBalancerSpec::ConsistentHash { bound, .. }, Some(key)) => {
                return self.pick_on_ring(selectable_tier, ring, key, *bound, is_allowed);
            }
            (LoadBalancerSpec::Random | LoadBalancerSpec::ConsistentHash { .. }, _) => {
                balance::pick_random(members.len(), selection_weight, random)
            }
        };
        picked.map(|member| members[member])
    }

    /// Returns the endpoint of a key on the ring, or the next one that is available and within
    /// its load bound. If no available endpoint is within its bound, the bound is ignored.
    fn pick_on_ring(
        &self,
        selectable_tier: &SelectableTier,
        ring: &HashRing,
        key: u64,
        bound: f64,
        is_allowed: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let accepts = |index: usize| {
            selectable_tier.members.binary_search(&index).is_ok() && is_allowed(index)
        };
        let total_in_flight = self.counters.in_flight.load(Ordering::Relaxed);
        let is_within_bound = |index: usize| {
            hash_ring::is_within_load_bound(
                self.endpoints[index].in_flight(),
                total_in_flight,
                self.weight(index) / selectable_tier.weight_sum,
                bound,
            )
        };
        ring.pick(key, |index| accepts(index) && is_within_bound(index))
            .or_else(|| ring.pick(key, accepts))
    }

    /// Returns the warm-up factor of the warmest member, in `0.0..=1.0`.
    ///
    /// If endpoints announce curves of their own, the one that is warm first may not be the
    /// warmest now.
    fn max_warm_up_factor(&self, selectable_tier: &SelectableTier, now: Instant) -> f64 {
        if selectable_tier.members.is_empty() {
            return 1.0;
        }
        let first = self.warm_up_factor(selectable_tier.warmest_endpoint, now);
        let has_own_curves = first < 1.0 && self.spec.warm_up.is_none();
        if has_own_curves {
            selectable_tier
                .members
                .iter()
                .map(|index| self.warm_up_factor(*index, now))
                .fold(first, f64::max)
        } else {
            first
        }
    }

    fn weight(&self, index: usize) -> f64 {
        self.endpoint_specs[index].weight.get().into()
    }

    /// Returns the share of its weight that an endpoint receives while it warms up, in
    /// `0.0..=1.0`.
    fn warm_up_factor(&self, index: usize, now: Instant) -> f64 {
        self.endpoints[index].warm_up_factor(self.spec.warm_up.as_ref(), now)
    }

    /// Returns the index of each tier with the indices of its members.
    pub(crate) fn tiers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.tiers
            .iter()
            .map(|tier| tier.members.as_slice())
            .enumerate()
    }

    /// Returns the indices of the endpoints on probation.
    pub(crate) fn probation_endpoints(&self) -> Vec<usize> {
        self.selectable.load().probation.clone()
    }

    /// Returns whether any endpoint is on probation.
    pub(crate) fn has_probation(&self) -> bool {
        !self.selectable.load().probation.is_empty()
    }

    /// Returns whether an endpoint is healthy and not ejected.
    ///
    /// Results of a mechanism that the policy no longer has do not count: health without an
    /// active check, and ejections without enforced outlier detection.
    fn is_available(&self, index: usize) -> bool {
        self.is_healthy(index)
            && !(self.endpoints[index].is_ejected() && self.enforces_outlier_detection())
    }

    /// Returns whether no active check reports the endpoint as unhealthy.
    pub(crate) fn is_healthy(&self, index: usize) -> bool {
        self.spec.active_check.is_none() || self.endpoints[index].health() != Health::Unhealthy
    }

    /// Returns whether the policy enforces outlier detection.
    pub(crate) fn enforces_outlier_detection(&self) -> bool {
        self.spec
            .outlier_detection
            .as_ref()
            .is_some_and(|outlier| outlier.mode == Mode::Enforce)
    }

    /// Returns the number of endpoints that are available and not draining.
    #[must_use]
    pub fn available_count(&self) -> usize {
        self.available_endpoints().count()
    }

    /// Returns the endpoints that are available and not draining.
    pub(crate) fn available_endpoints(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        (0..self.endpoints.len())
            .filter(|index| self.is_available(*index) && !self.is_draining(*index))
            .map(|index| &self.endpoints[index])
    }

    fn is_draining(&self, index: usize) -> bool {
        self.endpoints[index].draining_until().is_some()
    }

    /// Clears the draining marks that have expired, and emits an event for each.
    pub fn clear_expired_draining(&self, now: Instant) {
        for endpoint in self.endpoints.iter().filter(|endpoint| {
            endpoint
                .draining_until()
                .is_some_and(|draining_end| now >= draining_end)
        }) {
            if endpoint.clear_draining(now) {
                self.telemetry.emit(Event::EndpointDrainingCleared {
                    backend: self.spec.name.clone(),
                    endpoint: endpoint.label.clone(),
                    reason: "its time is over",
                });
            }
        }
    }

    /// Returns whether availability is ignored for any endpoints that receive traffic.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.selectable.load().is_panicking
    }

    /// Computes which endpoints can be selected, and emits an event if panic mode changes.
    ///
    /// If all healthy endpoints are ejected, ejections are ignored. When each of them was
    /// ejected, another endpoint was available, which has since been removed or failed its
    /// checks.
    ///
    /// A draining endpoint is excluded as if it were removed already. If no other endpoint is
    /// available, it is still used, because it continues to serve.
    pub fn refresh_selectable(&self) {
        let version = self.counters.availability_version.load(Ordering::Acquire);
        let has_alternative = self.available_count() > 0;
        let is_counted = |index: usize| !(has_alternative && self.is_draining(index));
        let candidates = || (0..self.endpoints.len()).filter(|index| is_counted(*index));
        let are_all_ejected = !candidates().any(|index| self.is_available(index))
            && candidates().any(|index| self.is_healthy(index));
        let is_available = |index: usize| {
            if are_all_ejected {
                self.is_healthy(index)
            } else {
                self.is_available(index)
            }
        };
        let count = |tier: &Tier, predicate: &dyn Fn(usize) -> bool| {
            tier.members
                .iter()
                .filter(|index| is_counted(**index) && predicate(**index))
                .count()
        };
        let levels = self.tiers.iter().map(|tier| PriorityLevel {
            total: count(tier, &|_| true),
            available: count(tier, &is_available),
        });
        let shares = priority_levels::distribute_load(
            &levels.collect::<Vec<_>>(),
            self.spec.panic_threshold_percent,
        );
        let tiers = self.tiers.iter().zip(&shares).map(|(tier, share)| {
            // A tier without a share receives only retries, which should reach available
            // endpoints.
            let ignores_availability = share.is_in_panic && share.load > 0.0;
            let members: Vec<usize> = tier
                .members
                .iter()
                .copied()
                .filter(|index| {
                    is_counted(*index) && (ignores_availability || is_available(*index))
                })
                .collect();
            let weights = members.iter().map(|index| self.weight(*index));
            let warmest = members
                .iter()
                .copied()
                .min_by_key(|index| {
                    self.endpoints[*index].warm_up_ends_at(self.spec.warm_up.as_ref())
                })
                .unwrap_or_default();
            SelectableTier {
                load_share: share.load,
                max_weight: weights.clone().fold(0.0, f64::max),
                weight_sum: weights.sum(),
                warmest_endpoint: warmest,
                members,
            }
        });
        let is_on_probation = |index: &usize| {
            is_counted(*index)
                && self.enforces_outlier_detection()
                && self.endpoints[*index].is_ejected()
                && matches!(
                    self.endpoints[*index].outlier_detector().ejection_state(),
                    EjectionState::Probation { .. }
                )
        };
        let probation = (0..self.endpoints.len()).filter(is_on_probation).collect();
        let is_panicking = are_all_ejected
            || shares
                .iter()
                .any(|share| share.is_in_panic && share.load > 0.0);
        let next_draining_end = self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.draining_until())
            .min();
        self.selectable.store(Arc::new(SelectableEndpoints {
            version,
            tiers: tiers.collect(),
            probation,
            is_panicking,
            next_draining_end,
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

fn draw_tier(tiers: &[SelectableTier], random: f64) -> usize {
    let mut remaining = random;
    for (index, tier) in tiers.iter().enumerate() {
        if remaining < tier.load_share {
            return index;
        }
        remaining -= tier.load_share;
    }
    0
}

/// Groups endpoints into tiers by priority.
///
/// Within a priority, the endpoints in the zone of this instance form a tier before the others,
/// if the zone has at least `min_endpoints_in_zone` of them.
fn group_into_tiers(spec: &BackendSpec, places: &[EndpointSpec], zone: Option<&str>) -> Vec<Tier> {
    let is_in_zone = |index: usize| {
        places[index]
            .zone
            .as_deref()
            .is_some_and(|endpoint_zone| Some(endpoint_zone) == zone)
    };
    let mut priorities: Vec<u32> = places.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for priority in priorities {
        let members = (0..places.len()).filter(|index| places[*index].priority == priority);
        let (same_zone, other_zones): (Vec<usize>, Vec<usize>) =
            members.partition(|index| is_in_zone(*index));
        let prefers_zone = spec
            .min_endpoints_in_zone
            .is_some_and(|minimum| same_zone.len() >= minimum as usize);
        if prefers_zone {
            groups.extend([same_zone, other_zones]);
        } else {
            let mut all = [same_zone, other_zones].concat();
            all.sort_unstable();
            groups.push(all);
        }
    }
    let ring = |members: &[usize]| {
        let ring_entries = members.iter().map(|index| {
            (
                u32::try_from(*index).unwrap_or(u32::MAX),
                places[*index].address.to_string(),
                f64::from(places[*index].weight.get()),
            )
        });
        HashRing::new(&ring_entries.collect::<Vec<_>>())
    };
    let uses_ring = matches!(spec.load_balancer, LoadBalancerSpec::ConsistentHash { .. });
    groups.retain(|members| !members.is_empty());
    groups
        .into_iter()
        .map(|members| Tier {
            ring: if uses_ring {
                ring(&members)
            } else {
                HashRing::default()
            },
            members,
        })
        .collect()
}

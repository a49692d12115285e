//! Selects an endpoint of a backend for a request.
//!
//! The algorithms are in [`crate::resilience::balance`]. The module does not know circuit
//! breakers or earlier attempts: the caller excludes endpoints by a predicate.

use std::{sync::atomic::Ordering, time::Instant};

use crate::{
    policy::snapshot::LoadBalancerSpec,
    resilience::balance::{
        self,
        hash_ring::{self, HashRing},
    },
    state::topology::backend::{BackendState, SelectableTier},
};

/// Properties of a request on which the selection of an endpoint depends.
#[derive(Debug, Clone, Copy)]
pub struct SelectionRequest {
    /// Hash of the value that binds the request to an endpoint; `None` if it has no such value.
    pub hash_key: Option<u64>,
    /// Time at which the endpoint is selected.
    pub now: Instant,
}

impl BackendState {
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
            let selection = TierSelection {
                backend: self,
                tier: &selectable.tiers[tier],
                ring: &self.tiers[tier].ring,
                request,
            };
            selection.pick(&is_allowed, &mut random)
        });
        picks.find_map(|picked| picked)
    }
}

/// Selection of an endpoint among the members of one tier.
struct TierSelection<'b> {
    backend: &'b BackendState,
    tier: &'b SelectableTier,
    ring: &'b HashRing,
    request: SelectionRequest,
}

impl TierSelection<'_> {
    fn pick(
        &self,
        is_allowed: &impl Fn(usize) -> bool,
        random: &mut impl FnMut() -> f64,
    ) -> Option<usize> {
        let (backend, members) = (self.backend, &self.tier.members);
        // Weights are relative to the warmest member. Otherwise a selection would take many
        // draws while all members are new.
        let max_effective_weight = self.tier.max_weight * self.max_warm_up_factor();
        let relative_weight = |index: usize| {
            (backend.weight(index) * self.warm_up_factor(index) / max_effective_weight).min(1.0)
        };
        // A warming endpoint has few requests in flight because it receives few. Its low load
        // must not attract more.
        let is_warming_up = |member: usize| self.warm_up_factor(members[member]) < 1.0;
        let selection_weight = |member: usize| {
            if is_allowed(members[member]) {
                relative_weight(members[member])
            } else {
                0.0
            }
        };
        let uses_latency = matches!(backend.spec.load_balancer, LoadBalancerSpec::PeakEwma);
        let picked = match (&backend.spec.load_balancer, self.request.hash_key) {
            (LoadBalancerSpec::LeastRequest | LoadBalancerSpec::PeakEwma, _) => {
                let cost = |member: usize| {
                    let endpoint = &backend.endpoints[members[member]];
                    let (in_flight, weight) =
                        (endpoint.in_flight(), relative_weight(members[member]));
                    if uses_latency {
                        endpoint
                            .peak_ewma()
                            .cost(in_flight, weight, self.request.now)
                    } else {
                        f64::from(in_flight) / weight
                    }
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
                    backend
                        .counters
                        .round_robin_index
                        .fetch_add(1, Ordering::Relaxed)
                },
                random,
            ),
            (LoadBalancerSpec::ConsistentHash { bound, .. }, Some(key)) => {
                return self.pick_on_ring(key, *bound, is_allowed);
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
        key: u64,
        bound: f64,
        is_allowed: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let accepts =
            |index: usize| self.tier.members.binary_search(&index).is_ok() && is_allowed(index);
        let total_in_flight = self.backend.counters.in_flight.load(Ordering::Relaxed);
        let is_within_bound = |index: usize| {
            hash_ring::is_within_load_bound(
                self.backend.endpoints[index].in_flight(),
                total_in_flight,
                self.backend.weight(index) / self.tier.weight_sum,
                bound,
            )
        };
        self.ring
            .pick(key, |index| accepts(index) && is_within_bound(index))
            .or_else(|| self.ring.pick(key, accepts))
    }

    /// Returns the warm-up factor of the warmest member, in `0.0..=1.0`.
    ///
    /// If endpoints announce curves of their own, the one that is warm first may not be the
    /// warmest now.
    fn max_warm_up_factor(&self) -> f64 {
        let members = &self.tier.members;
        if members.is_empty() {
            return 1.0;
        }
        let first = self.warm_up_factor(self.tier.warmest_endpoint);
        let has_own_curves = first < 1.0 && self.backend.spec.warm_up.is_none();
        if has_own_curves {
            members
                .iter()
                .map(|index| self.warm_up_factor(*index))
                .fold(first, f64::max)
        } else {
            first
        }
    }

    /// Returns the share of its weight that an endpoint receives while it warms up, in
    /// `0.0..=1.0`.
    fn warm_up_factor(&self, index: usize) -> f64 {
        let warm_up = self.backend.spec.warm_up.as_ref();
        self.backend.endpoints[index].warm_up_factor(warm_up, self.request.now)
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

//! A backend of one policy set, joined with its endpoints.
//!
//! This module decides which endpoints can be selected. Each request needs that information,
//! but it changes rarely. The selectable endpoints are therefore computed after a change, into
//! lists from which [`selection`] draws. The number of endpoints, or of unavailable ones, does
//! not affect the cost of a selection. A change increments a version, and the next selection
//! computes the lists again.

pub mod selection;
mod tiers;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;

use crate::{
    policy::snapshot::{BackendSpec, EndpointSpec},
    resilience::{
        Mode,
        balance::priority_levels::{self, LevelLoad, PriorityLevel},
        health::Health,
        outlier::EjectionState,
    },
    state::topology::{
        backend::tiers::{Tier, group_into_tiers},
        endpoint::{BackendCounters, EndpointState},
    },
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
    pub(in crate::state) telemetry: Arc<Telemetry>,
    tiers: Vec<Tier>,
    selectable: ArcSwap<SelectableEndpoints>,
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

/// Parts of a backend that are retained across reloads, as long as its name stays the same.
#[derive(Debug)]
pub struct RetainedBackendState {
    /// Handles of the metrics of the backend.
    pub metrics: Arc<BackendMetrics>,
    /// Counts of the backend.
    pub counters: Arc<BackendCounters>,
}

impl BackendState {
    /// Joins a backend with its endpoints. `zone` is the availability zone of this instance.
    #[must_use]
    pub fn new(
        spec: BackendSpec,
        members: Vec<(EndpointSpec, Arc<EndpointState>)>,
        retained: RetainedBackendState,
        telemetry: Arc<Telemetry>,
        zone: Option<&str>,
    ) -> Self {
        let (endpoint_specs, endpoints): (Vec<EndpointSpec>, Vec<_>) = members.into_iter().unzip();
        let tiers = group_into_tiers(&spec, &endpoint_specs, zone);
        let backend = Self {
            spec,
            endpoints,
            endpoint_specs,
            metrics: retained.metrics,
            counters: retained.counters,
            telemetry,
            tiers,
            selectable: ArcSwap::default(),
        };
        backend.refresh_selectable();
        backend
    }

    fn weight(&self, index: usize) -> f64 {
        self.endpoint_specs[index].weight.get().into()
    }

    /// Returns the index of each tier with the indices of its members.
    pub(in crate::state) fn tiers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.tiers
            .iter()
            .map(|tier| tier.members.as_slice())
            .enumerate()
    }

    /// Returns the indices of the endpoints on probation.
    pub(in crate::state) fn probation_endpoints(&self) -> Vec<usize> {
        self.selectable.load().probation.clone()
    }

    /// Returns whether any endpoint is on probation.
    pub(in crate::state) fn has_probation(&self) -> bool {
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
    pub(in crate::state) fn is_healthy(&self, index: usize) -> bool {
        self.spec.active_check.is_none() || self.endpoints[index].health() != Health::Unhealthy
    }

    /// Returns whether the policy enforces outlier detection.
    pub(in crate::state) fn enforces_outlier_detection(&self) -> bool {
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
    pub(in crate::state) fn available_endpoints(
        &self,
    ) -> impl Iterator<Item = &Arc<EndpointState>> {
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
                    reason: "its ttl has expired",
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
    pub fn refresh_selectable(&self) {
        let version = self.counters.availability_version.load(Ordering::Acquire);
        let selectable = Eligibility::new(self).compute_selectable(version);
        let is_panicking = selectable.is_panicking;
        self.selectable.store(Arc::new(selectable));
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

    /// Returns whether the endpoint may receive one probe at a time after its ejection.
    fn is_on_probation(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        self.enforces_outlier_detection()
            && endpoint.is_ejected()
            && matches!(endpoint.ejection_state(), EjectionState::Probation { .. })
    }
}

/// Rules that decide which endpoints of a backend can be selected at this moment.
struct Eligibility<'b> {
    backend: &'b BackendState,
    /// Whether a draining endpoint is excluded as if it were removed already. If no other
    /// endpoint is available, it is still used, because it continues to serve.
    excludes_draining: bool,
    /// Whether ejections are ignored, because all healthy endpoints are ejected. When each of
    /// them was ejected, another endpoint was available, which has since been removed or failed
    /// its checks.
    ignores_ejections: bool,
}

impl<'b> Eligibility<'b> {
    fn new(backend: &'b BackendState) -> Self {
        let with_ejections = Self {
            backend,
            excludes_draining: backend.available_count() > 0,
            ignores_ejections: false,
        };
        let has_candidate = |is_suitable: &dyn Fn(usize) -> bool| {
            (0..backend.endpoints.len())
                .any(|index| with_ejections.is_candidate(index) && is_suitable(index))
        };
        let ignores_ejections = !has_candidate(&|index| backend.is_available(index))
            && has_candidate(&|index| backend.is_healthy(index));
        Self {
            ignores_ejections,
            ..with_ejections
        }
    }

    fn compute_selectable(&self, version: u64) -> SelectableEndpoints {
        let backend = self.backend;
        let levels: Vec<PriorityLevel> = backend
            .tiers
            .iter()
            .map(|tier| self.compute_level(tier))
            .collect();
        let loads = priority_levels::distribute_load(&levels, backend.spec.panic_threshold_percent);
        SelectableEndpoints {
            version,
            tiers: backend
                .tiers
                .iter()
                .zip(&loads)
                .map(|(tier, load)| self.compute_tier(tier, *load))
                .collect(),
            probation: (0..backend.endpoints.len())
                .filter(|index| self.is_candidate(*index) && backend.is_on_probation(*index))
                .collect(),
            is_panicking: self.ignores_ejections
                || loads.iter().any(|load| ignores_availability(*load)),
            next_draining_end: backend
                .endpoints
                .iter()
                .filter_map(|endpoint| endpoint.draining_until())
                .min(),
        }
    }

    fn compute_level(&self, tier: &Tier) -> PriorityLevel {
        let candidates = tier
            .members
            .iter()
            .copied()
            .filter(|index| self.is_candidate(*index));
        PriorityLevel {
            total: candidates.clone().count(),
            available: candidates.filter(|index| self.is_available(*index)).count(),
        }
    }

    fn compute_tier(&self, tier: &Tier, load: LevelLoad) -> SelectableTier {
        let backend = self.backend;
        let ignores_availability = ignores_availability(load);
        let members: Vec<usize> = tier
            .members
            .iter()
            .copied()
            .filter(|index| {
                self.is_candidate(*index) && (ignores_availability || self.is_available(*index))
            })
            .collect();
        let weights = members.iter().map(|index| backend.weight(*index));
        let warm_up = backend.spec.warm_up.as_ref();
        let warmest = members
            .iter()
            .copied()
            .min_by_key(|index| backend.endpoints[*index].warm_up_ends_at(warm_up))
            .unwrap_or_default();
        SelectableTier {
            load_share: load.load,
            max_weight: weights.clone().fold(0.0, f64::max),
            weight_sum: weights.sum(),
            warmest_endpoint: warmest,
            members,
        }
    }

    /// Returns whether an endpoint counts as a member of its tier.
    fn is_candidate(&self, index: usize) -> bool {
        !(self.excludes_draining && self.backend.is_draining(index))
    }

    /// Returns whether an endpoint is healthy and, unless ejections are ignored, not ejected.
    fn is_available(&self, index: usize) -> bool {
        if self.ignores_ejections {
            self.backend.is_healthy(index)
        } else {
            self.backend.is_available(index)
        }
    }
}

/// Returns whether all endpoints of a tier share its traffic, because the tier is in panic.
///
/// A tier without a share receives only retries, which should reach available endpoints.
fn ignores_availability(load: LevelLoad) -> bool {
    load.is_in_panic && load.load > 0.0
}

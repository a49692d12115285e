//! Endpoints of all backends, by address, and the latest known endpoints of each backend.
//!
//! An endpoint that keeps its address keeps its state. The module does not resolve names and does
//! not select endpoints.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    policy::snapshot::{BackendSpec, Discovery, EndpointAddress, EndpointSpec},
    resilience::Mode,
    state::topology::{
        backend::BackendState,
        endpoint::{BackendCounters, EndpointState},
    },
};

/// Endpoints and counters that are retained across reloads.
#[derive(Debug, Default)]
pub(super) struct EndpointTable {
    endpoints: HashMap<(Arc<str>, EndpointAddress), Arc<EndpointState>>,
    /// Latest known endpoints of each backend: static, or found by discovery.
    known: HashMap<Arc<str>, KnownEndpoints>,
    counters: HashMap<Arc<str>, Arc<BackendCounters>>,
    next_id: u64,
}

#[derive(Debug)]
struct KnownEndpoints {
    source: Discovery,
    endpoints: Vec<EndpointSpec>,
    /// Mode of outlier detection for these endpoints; `None` if it is not configured.
    outlier_mode: Option<Mode>,
}

impl EndpointTable {
    /// Returns the counters and the endpoints of a backend, which are created if needed.
    pub(super) fn ensure(
        &mut self,
        spec: &BackendSpec,
        now: Instant,
    ) -> (
        Arc<BackendCounters>,
        Vec<(EndpointSpec, Arc<EndpointState>)>,
    ) {
        let counters = self.counters.entry(spec.name.clone()).or_default().clone();
        // The first endpoints of a backend may have been running for a long time. Endpoints that
        // are added later count as new and warm up.
        let has_known_endpoints = self
            .endpoints
            .keys()
            .any(|(backend, _)| *backend == spec.name);
        let mut members = Vec::new();
        for endpoint in self.current_endpoints(spec) {
            let id = self.next_id;
            self.next_id += 1;
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
                .endpoints
                .entry((spec.name.clone(), endpoint.address.clone()))
                .or_insert_with(make)
                .clone();
            members.push((endpoint, state));
        }
        (counters, members)
    }

    /// Stores the endpoints that discovery found for a backend, and returns whether they changed.
    ///
    /// Endpoints from a source that the policy no longer names are ignored.
    pub(super) fn record_discovered(
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

    /// Returns the endpoints of a backend: the static ones, or else the latest known ones.
    ///
    /// The source of discovery may have changed. The endpoints of the earlier source stay in use
    /// until the new source has a result.
    fn current_endpoints(&mut self, spec: &BackendSpec) -> Vec<EndpointSpec> {
        let static_endpoints = match &spec.discovery {
            Discovery::Static(endpoints) => Some(endpoints.clone()),
            Discovery::File(_) | Discovery::Dns(_) => None,
        };
        let (source, outlier_mode) = (
            spec.discovery.clone(),
            spec.outlier_detection.as_ref().map(|outlier| outlier.mode),
        );
        let known = self.known.remove(&spec.name);
        if known
            .as_ref()
            .is_some_and(|known| known.outlier_mode != outlier_mode)
        {
            // The mode of outlier detection changed. An ejection in shadow mode was never enforced,
            // and without outlier detection nothing ends an ejection.
            let backend_endpoints = self
                .endpoints
                .iter()
                .filter(|((backend, _), _)| *backend == spec.name);
            backend_endpoints.for_each(|(_, endpoint)| endpoint.uneject());
        }
        let endpoints = static_endpoints
            .or(known.map(|known| known.endpoints))
            .unwrap_or_default();
        self.known.insert(
            spec.name.clone(),
            KnownEndpoints {
                source,
                endpoints: endpoints.clone(),
                outlier_mode,
            },
        );
        endpoints
    }

    /// Removes what no backend uses, and retires the removed endpoints.
    pub(super) fn remove_unused(&mut self, backends: &[Arc<BackendState>]) {
        let backend_names: HashSet<&str> =
            backends.iter().map(|backend| &*backend.spec.name).collect();
        self.counters
            .retain(|name, _| backend_names.contains(&**name));
        self.known.retain(|name, _| backend_names.contains(&**name));
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

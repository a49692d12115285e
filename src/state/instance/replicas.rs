//! The other replicas of this service.
//!
//! This module decides which endpoints of the replicas backend are this instance itself, and
//! whether any others are available. The warm-up and the capacity forecast depend on that. The
//! module does not discover replicas: it reads the endpoints of the backend that the policy
//! names, and knows nothing without one.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;

use crate::{
    policy::snapshot::EndpointAddress,
    resilience::health::Health,
    state::{
        active_policy::ActivePolicy,
        topology::{backend::BackendState, endpoint::EndpointState},
    },
};

/// Addresses by which this instance is recognized among the replicas.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Addresses to which the inbound listeners are bound.
    own_addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Replicas {
    /// Sets the addresses to which the inbound listeners are bound.
    pub fn set_own_addresses(&self, own_addresses: Vec<SocketAddr>) {
        self.own_addresses.store(Arc::new(own_addresses));
    }

    /// Returns the number of other replicas that are available.
    ///
    /// Returns `None` if the policy names no replicas backend, or if no endpoint of it is
    /// known.
    #[must_use]
    pub fn count_available_others(&self, active_policy: &ActivePolicy) -> Option<u32> {
        let backend = replicas_backend(active_policy)?;
        if backend.endpoints.is_empty() {
            // Discovery has found no endpoint yet, not even this instance.
            return None;
        }
        let own_addresses = self.own_addresses.load();
        u32::try_from(
            backend
                .available_endpoints()
                .filter(|endpoint| !is_own_listener(&own_addresses, endpoint))
                .count(),
        )
        .ok()
    }

    /// Returns whether another replica is available, healthy and warm.
    ///
    /// It is healthy only after a passed check. It is warm unless it announces a warm-up
    /// itself.
    #[must_use]
    pub fn has_warm_replica(&self, active_policy: &ActivePolicy, now: Instant) -> bool {
        let Some(backend) = replicas_backend(active_policy) else {
            return false;
        };
        let own_addresses = self.own_addresses.load();
        let is_warm = |endpoint: &Arc<EndpointState>| {
            endpoint.health() == Health::Healthy && endpoint.warm_up_factor(None, now) >= 1.0
        };
        backend
            .available_endpoints()
            .any(|endpoint| is_warm(endpoint) && !is_own_listener(&own_addresses, endpoint))
    }
}

fn replicas_backend(active_policy: &ActivePolicy) -> Option<&Arc<BackendState>> {
    active_policy
        .snapshot
        .lifecycle
        .replicas_backend
        .map(|index| &active_policy.backends[index])
}

/// Returns whether an endpoint is a listener of this instance.
///
/// The port must match. The address must match as well; for a listener that is bound to all
/// addresses, it must be any address of this host.
fn is_own_listener(own_addresses: &[SocketAddr], endpoint: &EndpointState) -> bool {
    let EndpointAddress::Tcp(address) = &endpoint.address else {
        return false;
    };
    let ip = address.ip().to_canonical();
    own_addresses.iter().any(|listener| {
        listener.port() == address.port()
            && (listener.ip().to_canonical() == ip
                || (listener.ip().is_unspecified() && endpoint.is_local()))
    })
}

#[cfg(test)]
mod tests;

//! The instances of this very service, as far as they are known: whether there is another one to ask.

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

/// Which of the endpoints of a backend this instance is itself.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Where callers reach this instance.
    own_addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Replicas {
    /// Takes note of where callers reach this instance: the addresses that its inbound listeners are bound to.
    pub fn set_own_addresses(&self, own_addresses: Vec<SocketAddr>) {
        self.own_addresses.store(Arc::new(own_addresses));
    }

    /// How many other instances may be asked now; nothing if nobody knows.
    #[must_use]
    pub fn count_available_others(&self, active_policy: &ActivePolicy) -> Option<u32> {
        let backend = replicas_backend(active_policy)?;
        if backend.endpoints.is_empty() {
            // Nothing was found yet, not even this one.
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

    /// Whether another instance is known to be there and warm: a check of it has passed, and it does not say that it is new itself.
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

/// Whether an endpoint is one of our listeners: by its port, and because its address is that of a listener or, for one that listens on all of
/// them, any of this host.
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

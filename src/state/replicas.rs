//! The instances of this very service, as far as they are known: whether there is another one to ask.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
};

use super::live::Live;
use crate::policy::snapshot::Address;

/// Which of the endpoints of a backend this instance is itself.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Where callers reach this instance; guards single reads and writes.
    own: Mutex<Vec<SocketAddr>>,
}

impl Replicas {
    /// Takes note of where callers reach this instance: the addresses that its inbound listeners are bound to.
    pub fn reached_at(&self, own: Vec<SocketAddr>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// How many other instances may be asked now; nothing if nobody knows.
    #[must_use]
    pub fn others(&self, live: &Live) -> Option<u32> {
        let backend = &live.backends[live.snapshot.lifecycle.replicas?];
        if backend.endpoints.is_empty() {
            // Nothing was found yet, not even this one.
            return None;
        }
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let others = backend.available_endpoints().filter(|endpoint| !matches!(endpoint.address, Address::Tcp(address) if is_own(&own, address)));
        u32::try_from(others.count()).ok()
    }
}

/// Whether an address leads to one of our listeners: by its port, and because it is that of a listener or, for one that listens on all of
/// them, any address of this host.
fn is_own(own: &[SocketAddr], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    own.iter().any(|listener| listener.port() == address.port() && (listener.ip().to_canonical() == ip || (listener.ip().is_unspecified() && is_of_this_host(ip))))
}

/// Only an address of this host can be bound. Nothing is sent, and nothing is received.
fn is_of_this_host(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_knows_its_own_address_among_others() {
        let table = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            // Set aside for documentation (RFC 5737): no host has it.
            ("0.0.0.0:80", "192.0.2.1:80", false),
        ];
        for (own, address, expected) in table {
            assert_eq!(is_own(&[own.parse().expect("an address")], address.parse().expect("an address")), expected, "{address} at {own}");
        }
    }
}

//! What the certificate files held when they were last read well.
//!
//! Connections take what is here; the background reads the files again and puts what is new here. An entry has a number of its
//! own, so that a pooled connection that was made under another certificate is not used any more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use crate::policy::snapshot::{BackendTlsSpec, ListenerTlsSpec, PolicySnapshot};

/// What was made of certificate files.
#[derive(Debug)]
pub struct TlsMaterial<C> {
    /// For new connections.
    pub config: Arc<C>,
    /// A hash of the files' content.
    pub content_hash: u64,
    /// Apart from every other entry that ever was.
    pub generation: u64,
    /// When the first of the certificates ends.
    pub not_after: Option<SystemTime>,
}

impl<C> Clone for TlsMaterial<C> {
    fn clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            ..*self
        }
    }
}

/// Material by what it was made for.
#[derive(Debug, Default)]
pub struct TlsStore {
    listeners: ArcSwap<HashMap<ListenerTlsSpec, TlsMaterial<ServerConfig>>>,
    backends: ArcSwap<HashMap<BackendTlsSpec, TlsMaterial<ClientConfig>>>,
    last_generation: AtomicU64,
}

/// What is to be put in force.
#[derive(Debug, Default)]
pub struct TlsUpdate {
    /// Towards clients.
    pub listeners: HashMap<ListenerTlsSpec, TlsMaterial<ServerConfig>>,
    /// Towards backends.
    pub backends: HashMap<BackendTlsSpec, TlsMaterial<ClientConfig>>,
}

impl TlsStore {
    /// A number that was not given before.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.last_generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// For a new connection of a client.
    #[must_use]
    pub fn listener_material(&self, spec: &ListenerTlsSpec) -> Option<TlsMaterial<ServerConfig>> {
        self.listeners.load().get(spec).cloned()
    }

    /// For a new connection to a backend.
    #[must_use]
    pub fn backend_material(&self, spec: &BackendTlsSpec) -> Option<TlsMaterial<ClientConfig>> {
        self.backends.load().get(spec).cloned()
    }

    /// Adds what is new; entries with the same key are replaced.
    pub fn apply(&self, update: &TlsUpdate) {
        self.listeners.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.extend(
                update
                    .listeners
                    .iter()
                    .map(|(spec, material)| (spec.clone(), material.clone())),
            );
            next
        });
        self.backends.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.extend(
                update
                    .backends
                    .iter()
                    .map(|(spec, material)| (spec.clone(), material.clone())),
            );
            next
        });
    }

    /// Forgets what neither of these sets of policies names: the one in force, and the one before, which requests may still have pinned.
    pub fn retain_referenced(&self, sets: [&PolicySnapshot; 2]) {
        let is_server = |spec: &ListenerTlsSpec| {
            sets.iter()
                .flat_map(|set| &set.listeners)
                .any(|listener| listener.tls.as_ref() == Some(spec))
        };
        let is_client = |spec: &BackendTlsSpec| {
            sets.iter()
                .flat_map(|set| &set.backends)
                .any(|backend| backend.tls.as_ref() == Some(spec))
        };
        self.listeners.rcu(|known| {
            known
                .iter()
                .filter(|(spec, _)| is_server(spec))
                .map(|(spec, material)| (spec.clone(), material.clone()))
                .collect::<HashMap<_, _>>()
        });
        self.backends.rcu(|known| {
            known
                .iter()
                .filter(|(spec, _)| is_client(spec))
                .map(|(spec, material)| (spec.clone(), material.clone()))
                .collect::<HashMap<_, _>>()
        });
    }
}

//! TLS configurations built from the latest valid content of the certificate files.
//!
//! New connections use the configurations in this store. A control task reads the files again
//! and replaces the entries whose content changed. Each entry has a generation, so that a
//! pooled connection with another certificate is not reused. The module does not read files and
//! does not validate certificates.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use crate::policy::snapshot::{BackendTlsSpec, ListenerTlsSpec, PolicySnapshot};

/// TLS configuration built from certificate files.
#[derive(Debug)]
pub struct TlsMaterial<C> {
    /// Configuration for new connections.
    pub config: Arc<C>,
    /// Hash of the content of the files, by which changes are detected.
    pub content_hash: u64,
    /// Number that no other entry has, not even an earlier one for the same files.
    pub generation: u64,
    /// Time at which the first of the certificates expires; `None` if it is unknown.
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

/// TLS configurations by the policy section that names their files.
#[derive(Debug, Default)]
pub struct TlsStore {
    listeners: ArcSwap<HashMap<ListenerTlsSpec, TlsMaterial<ServerConfig>>>,
    backends: ArcSwap<HashMap<BackendTlsSpec, TlsMaterial<ClientConfig>>>,
    last_generation: AtomicU64,
}

/// TLS configurations to add to a store.
#[derive(Debug, Default)]
pub struct TlsUpdate {
    /// Configurations of listeners, for connections of clients.
    pub listeners: HashMap<ListenerTlsSpec, TlsMaterial<ServerConfig>>,
    /// Configurations of backends, for connections to endpoints.
    pub backends: HashMap<BackendTlsSpec, TlsMaterial<ClientConfig>>,
}

impl TlsStore {
    /// Returns a generation that no other entry has.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.last_generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the configuration for a new client connection; `None` if none is loaded.
    #[must_use]
    pub fn listener_material(&self, spec: &ListenerTlsSpec) -> Option<TlsMaterial<ServerConfig>> {
        self.listeners.load().get(spec).cloned()
    }

    /// Returns the configuration for a new connection to a backend; `None` if none is loaded.
    #[must_use]
    pub fn backend_material(&self, spec: &BackendTlsSpec) -> Option<TlsMaterial<ClientConfig>> {
        self.backends.load().get(spec).cloned()
    }

    /// Adds the entries of an update, and replaces those with the same key.
    pub fn apply(&self, update: &TlsUpdate) {
        extend(&self.listeners, &update.listeners);
        extend(&self.backends, &update.backends);
    }

    /// Removes the entries that neither policy set names. The sets are the active one and the
    /// previous one, which requests in flight may still use.
    pub fn retain_referenced(&self, sets: [&PolicySnapshot; 2]) {
        retain(&self.listeners, |spec| {
            let mut listeners = sets.iter().flat_map(|set| &set.listeners);
            listeners.any(|listener| listener.tls.as_ref() == Some(spec))
        });
        retain(&self.backends, |spec| {
            let mut backends = sets.iter().flat_map(|set| &set.backends);
            backends.any(|backend| backend.tls.as_ref() == Some(spec))
        });
    }
}

type MaterialMap<K, C> = HashMap<K, TlsMaterial<C>>;

fn extend<K: Clone + Eq + Hash, C>(map: &ArcSwap<MaterialMap<K, C>>, update: &MaterialMap<K, C>) {
    map.rcu(|current| {
        let mut next = HashMap::clone(current);
        next.extend(
            update
                .iter()
                .map(|(spec, material)| (spec.clone(), material.clone())),
        );
        next
    });
}

fn retain<K: Clone + Eq + Hash, C>(
    map: &ArcSwap<MaterialMap<K, C>>,
    is_referenced: impl Fn(&K) -> bool,
) {
    map.rcu(|current| {
        let mut next = HashMap::clone(current);
        next.retain(|spec, _| is_referenced(spec));
        next
    });
}

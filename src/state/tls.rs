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

use crate::policy::snapshot::{ClientTlsSpec, ServerTlsSpec, Snapshot};

/// What was made of certificate files.
#[derive(Debug)]
pub struct Material<C> {
    /// For new connections.
    pub config: Arc<C>,
    /// A hash of the files' content.
    pub content: u64,
    /// Apart from every other entry that ever was.
    pub generation: u64,
    /// When the first of the certificates ends.
    pub not_after: Option<SystemTime>,
}

impl<C> Clone for Material<C> {
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
    servers: ArcSwap<HashMap<ServerTlsSpec, Material<ServerConfig>>>,
    clients: ArcSwap<HashMap<ClientTlsSpec, Material<ClientConfig>>>,
    last: AtomicU64,
}

/// What is to be put in force.
#[derive(Debug, Default)]
pub struct Fresh {
    /// Towards clients.
    pub servers: HashMap<ServerTlsSpec, Material<ServerConfig>>,
    /// Towards backends.
    pub clients: HashMap<ClientTlsSpec, Material<ClientConfig>>,
}

impl TlsStore {
    /// A number that was not given before.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// For a new connection of a client.
    #[must_use]
    pub fn server(&self, spec: &ServerTlsSpec) -> Option<Material<ServerConfig>> {
        self.servers.load().get(spec).cloned()
    }

    /// For a new connection to a backend.
    #[must_use]
    pub fn client(&self, spec: &ClientTlsSpec) -> Option<Material<ClientConfig>> {
        self.clients.load().get(spec).cloned()
    }

    /// Adds what is new; entries with the same key are replaced.
    pub fn put(&self, fresh: &Fresh) {
        self.servers.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.extend(
                fresh
                    .servers
                    .iter()
                    .map(|(spec, material)| (spec.clone(), material.clone())),
            );
            next
        });
        self.clients.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.extend(
                fresh
                    .clients
                    .iter()
                    .map(|(spec, material)| (spec.clone(), material.clone())),
            );
            next
        });
    }

    /// Forgets what neither of these sets of policies names: the one in force, and the one before, which requests may still have pinned.
    pub fn keep_only(&self, sets: [&Snapshot; 2]) {
        let is_server = |spec: &ServerTlsSpec| {
            sets.iter()
                .flat_map(|set| &set.listeners)
                .any(|listener| listener.tls.as_ref() == Some(spec))
        };
        let is_client = |spec: &ClientTlsSpec| {
            sets.iter()
                .flat_map(|set| &set.backends)
                .any(|backend| backend.tls.as_ref() == Some(spec))
        };
        self.servers.rcu(|known| {
            known
                .iter()
                .filter(|(spec, _)| is_server(spec))
                .map(|(spec, material)| (spec.clone(), material.clone()))
                .collect::<HashMap<_, _>>()
        });
        self.clients.rcu(|known| {
            known
                .iter()
                .filter(|(spec, _)| is_client(spec))
                .map(|(spec, material)| (spec.clone(), material.clone()))
                .collect::<HashMap<_, _>>()
        });
    }
}

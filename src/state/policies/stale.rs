//! Cache of responses that are served when a backend fails.
//!
//! The cache maps an address to its responses, and limits the total size in bytes. It evicts
//! the address that was used least recently (crate `lru`). Responses to one address that differ
//! by `vary` or by forwarding key are stored as variants.
//!
//! Each entry is a compact copy. Data from the wire is a slice of a larger buffer, and caching
//! the slice would retain the whole buffer.
//!
//! This module decides which entry matches a request, and which one is evicted. It does not
//! decide whether a response may be cached or served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    message::headers::Headers,
    policy::sections::{PolicySpec, stale_if_error::StaleIfErrorSpec},
    state::{
        policies::destination_policy::DestinationPolicyState,
        table::{BuildContext, Reconfigure},
    },
};

/// Maximum number of variants of one address. A further variant replaces the oldest one.
const MAX_VARIANTS: usize = 8;

/// Estimated memory of an entry besides its content, in bytes: map entries and reference
/// counts.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// Estimated memory of a header besides its text, in bytes: its positions, and its allocation.
const HEADER_OVERHEAD_BYTES: usize = 32;

/// Estimated memory of a name in `vary` besides its text, in bytes: its place in the list, and two
/// allocations.
const VARY_OVERHEAD_BYTES: usize = 96;

/// Response that is retained for a failure of the backend.
#[derive(Debug)]
pub struct CachedResponse {
    /// End-to-end headers of the response.
    pub headers: Headers,
    /// Complete body of the response.
    pub body: Bytes,
    /// Time at which the response was received.
    pub received_at: Instant,
    /// Time until which the response may be served.
    pub expires_at: Instant,
    /// Age that the response had when it was received.
    pub initial_age: Duration,
    /// Whether the response may be served to requests with credentials.
    pub is_public: bool,
    /// Route, rewrites and forwarded headers of the request. The response is served only to
    /// requests with an equal key.
    pub forwarding_key: Box<str>,
    /// Request headers that the response depends on, each with all of its values.
    pub vary: Vec<VaryField>,
}

/// Request header that a response depends on, with all of its values.
#[derive(Debug, PartialEq, Eq)]
pub struct VaryField {
    /// Name in lower case.
    pub name: Box<str>,
    /// Values in the order of the request.
    pub values: Vec<Box<[u8]>>,
}

impl CachedResponse {
    /// Copies all data out of the buffers from the wire.
    fn into_compact(mut self) -> Self {
        self.vary.shrink_to_fit();
        Self {
            headers: self.headers.to_compact(),
            body: Bytes::copy_from_slice(&self.body),
            ..self
        }
    }

    fn size_bytes(&self) -> usize {
        let headers = self.headers.size_bytes() + self.headers.len() * HEADER_OVERHEAD_BYTES;
        let vary = self.vary.iter().map(|field| {
            let values = field.values.iter();
            let values: usize = values
                .map(|value| value.len() + HEADER_OVERHEAD_BYTES)
                .sum();
            field.name.len() + values + VARY_OVERHEAD_BYTES
        });
        headers
            + vary.sum::<usize>()
            + self.body.len()
            + self.forwarding_key.len()
            + ENTRY_OVERHEAD_BYTES
    }

    fn matches(&self, lookup: StaleLookup<'_>) -> bool {
        *self.forwarding_key == *lookup.forwarding_key
            && self.vary.iter().all(|field| {
                let values = field.values.iter().map(|value| &**value);
                lookup.headers.get_all(&field.name).eq(values)
            })
    }
}

/// Properties of a request by which a cached response is found.
#[derive(Debug, Clone, Copy)]
pub struct StaleLookup<'r> {
    /// Address under which responses are stored.
    pub cache_key: &'r str,
    /// Route, rewrites and forwarded headers of the request.
    pub forwarding_key: &'r str,
    /// Headers of the request, which the `vary` headers of a response are compared with.
    pub headers: &'r Headers,
}

/// Stale responses, shared by all requests under one name.
#[derive(Debug)]
pub struct StaleState {
    name: Arc<str>,
    /// Cached responses and their size; the lock covers one call.
    inner: Mutex<StaleInner>,
}

#[derive(Debug)]
struct StaleInner {
    responses: LruCache<Box<str>, Vec<Arc<CachedResponse>>>,
    /// Total size of all entries in bytes, including the estimated overhead.
    bytes: usize,
    max_bytes: usize,
}

impl StaleState {
    /// Creates an empty cache with a maximum size of `max_bytes`.
    #[must_use]
    pub fn new(name: Arc<str>, max_bytes: usize) -> Self {
        Self {
            name,
            inner: Mutex::new(StaleInner {
                responses: LruCache::unbounded(),
                bytes: 0,
                max_bytes,
            }),
        }
    }

    /// Returns the name that identifies this state across reloads.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Applies a new maximum size, and evicts entries that exceed it.
    pub fn reconfigure(&self, max_bytes: usize) {
        let mut inner = self.lock();
        inner.max_bytes = max_bytes;
        inner.evict_to_limit();
    }

    /// Stores a response at an address. It replaces the variant for the same requests; expired
    /// variants are removed.
    pub fn store(&self, cache_key: &str, response: CachedResponse) {
        let response = Arc::new(response.into_compact());
        let mut inner = self.lock();
        let mut variants = inner.remove_variants(cache_key);
        variants.retain(|other| {
            other.expires_at > response.received_at
                && (other.forwarding_key != response.forwarding_key || other.vary != response.vary)
        });
        if variants.len() >= MAX_VARIANTS {
            variants.remove(0);
        }
        variants.push(response);
        inner.bytes += variants_bytes(cache_key, &variants);
        inner.responses.put(cache_key.into(), variants);
        inner.evict_to_limit();
    }

    /// Returns the latest response that matches a request and has not expired.
    ///
    /// A response matches if it has the same forwarding key, and the request has the same
    /// values of its `vary` headers. `max_age` limits the time since the response was received.
    #[must_use]
    pub fn find(
        &self,
        lookup: StaleLookup<'_>,
        max_age: Duration,
        now: Instant,
    ) -> Option<Arc<CachedResponse>> {
        let is_usable = |response: &CachedResponse| {
            now <= response.expires_at
                && now.saturating_duration_since(response.received_at) <= max_age
        };
        self.lock()
            .responses
            .get(lookup.cache_key)?
            .iter()
            .rev()
            .find(|response| response.matches(lookup) && is_usable(response))
            .cloned()
    }

    /// Removes all responses of an address.
    pub fn remove(&self, cache_key: &str) {
        self.lock().remove_variants(cache_key);
    }

    /// Evicts the responses that were not used for the longest time, until half of the size is
    /// left. Returns whether there were any.
    pub fn evict_half(&self) -> bool {
        let mut inner = self.lock();
        let size = inner.bytes;
        inner.evict_to(size / 2);
        inner.bytes < size
    }

    /// Returns the number of addresses and the total size in bytes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.responses.len(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, StaleInner> {
        self.inner.lock()
    }
}

impl StaleInner {
    fn remove_variants(&mut self, cache_key: &str) -> Vec<Arc<CachedResponse>> {
        let variants = self.responses.pop(cache_key).unwrap_or_default();
        if !variants.is_empty() {
            self.bytes -= variants_bytes(cache_key, &variants);
        }
        variants
    }

    fn evict_to_limit(&mut self) {
        self.evict_to(self.max_bytes);
    }

    fn evict_to(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let Some((cache_key, variants)) = self.responses.pop_lru() else {
                return;
            };
            self.bytes -= variants_bytes(&cache_key, &variants);
        }
    }
}

fn variants_bytes(cache_key: &str, variants: &[Arc<CachedResponse>]) -> usize {
    cache_key.len()
        + variants
            .iter()
            .map(|response| response.size_bytes())
            .sum::<usize>()
}

impl DestinationPolicyState for StaleState {
    fn select_spec(policy: &PolicySpec) -> Option<(&Arc<str>, &StaleIfErrorSpec)> {
        policy
            .stale_if_error
            .as_ref()
            .map(|spec| (&spec.name, spec))
    }
}

impl Reconfigure for StaleState {
    type Spec = StaleIfErrorSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, _: BuildContext<'_>) -> Self {
        Self::new(name.clone(), spec.max_bytes)
    }

    fn reconfigure(&self, spec: &Self::Spec, _: BuildContext<'_>) -> Option<Self> {
        self.reconfigure(spec.max_bytes);
        None
    }
}

#[cfg(test)]
mod tests;

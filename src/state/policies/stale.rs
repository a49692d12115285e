//! Good answers that are kept for the time when there are none.
//!
//! A map by address with a bound on all its bytes: what was used longest ago makes room (the crate `lru` keeps the order). Answers to the same
//! address that are told apart, by `vary` or by the way that the request came, stand side by side. What is kept is a copy with no room to spare: what
//! came over the wire are slices of larger buffers, which would be held as a whole.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use lru::LruCache;

/// Answers to one address that are told apart.
const MAX_VARIANTS: usize = 8;

/// What an answer costs besides its text: the places in the maps, and the counts of what it shares.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// What a field costs besides its text: its place in the map of fields and in its index.
const HEADER_OVERHEAD_BYTES: usize = 128;

/// An answer.
#[derive(Debug)]
pub struct CachedResponse {
    /// Its fields, without those that are about one connection.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it came.
    pub received_at: Instant,
    /// Until when it may be given.
    pub expires_at: Instant,
    /// How old it was when it came.
    pub initial_age: Duration,
    /// Whether it may be given to who says who he is.
    pub is_public: bool,
    /// By which way the request came: only what comes the same way gets it.
    pub forwarding_key: Box<str>,
    /// What of the request it depends on: all values of these fields.
    pub vary: Vec<(HeaderName, Vec<HeaderValue>)>,
}

impl CachedResponse {
    /// The same with nothing held but what it needs.
    fn into_compact(self) -> Self {
        let mut headers = HeaderMap::with_capacity(self.headers.keys_len());
        for (name, value) in &self.headers {
            headers.append(name.clone(), copy_value(value));
        }
        let vary = self
            .vary
            .into_iter()
            .map(|(name, values)| (name, values.iter().map(copy_value).collect()))
            .collect();
        Self {
            headers,
            vary,
            body: Bytes::copy_from_slice(&self.body),
            ..self
        }
    }

    fn size_bytes(&self) -> usize {
        let header_bytes = |name: &HeaderName, value: &HeaderValue| {
            name.as_str().len() + value.len() + HEADER_OVERHEAD_BYTES
        };
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| header_bytes(name, value))
            .sum();
        let vary: usize = self
            .vary
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| header_bytes(name, value)))
            .sum();
        headers
            + vary
            + self.vary.len() * HEADER_OVERHEAD_BYTES
            + self.body.len()
            + self.forwarding_key.len()
            + ENTRY_OVERHEAD_BYTES
    }

    fn matches(&self, forwarding_key: &str, request: &HeaderMap) -> bool {
        *self.forwarding_key == *forwarding_key
            && self
                .vary
                .iter()
                .all(|(name, values)| request.get_all(name).iter().eq(values))
    }
}

/// A value with a buffer of its own.
fn copy_value(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// What is kept of a backend.
#[derive(Debug)]
pub struct StaleState {
    name: Arc<str>,
    /// Guards one call.
    inner: Mutex<StaleInner>,
}

#[derive(Debug)]
struct StaleInner {
    responses: LruCache<Box<str>, Vec<Arc<CachedResponse>>>,
    bytes: usize,
    max_bytes: usize,
}

impl StaleState {
    /// Nothing yet, and at most so many bytes.
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

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Follows another bound.
    pub fn reconfigure(&self, max_bytes: usize) {
        let mut inner = self.lock();
        inner.max_bytes = max_bytes;
        inner.evict_to_limit();
    }

    /// Keeps an answer to the address, instead of the one that it had for the same requests.
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

    /// The last answer that may still be given to such a request and is no older than that.
    #[must_use]
    pub fn find(
        &self,
        cache_key: &str,
        forwarding_key: &str,
        request: &HeaderMap,
        max_age: Duration,
        now: Instant,
    ) -> Option<Arc<CachedResponse>> {
        let is_usable = |response: &CachedResponse| {
            now <= response.expires_at
                && now.saturating_duration_since(response.received_at) <= max_age
        };
        self.lock()
            .responses
            .get(cache_key)?
            .iter()
            .rev()
            .find(|response| response.matches(forwarding_key, request) && is_usable(response))
            .cloned()
    }

    /// Forgets what was kept of an address.
    pub fn remove(&self, cache_key: &str) {
        self.lock().remove_variants(cache_key);
    }

    /// How many addresses, and how many bytes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.responses.len(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, StaleInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        while self.bytes > self.max_bytes {
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

#[cfg(test)]
mod tests;

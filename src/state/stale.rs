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
const OVERHEAD: usize = 512;

/// What a field costs besides its text: its place in the map of fields and in its index.
const FIELD_OVERHEAD: usize = 128;

/// An answer.
#[derive(Debug)]
pub struct Kept {
    /// Its fields, without those that are about one connection.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it came.
    pub at: Instant,
    /// Until when it may be given.
    pub until: Instant,
    /// How old it was when it came.
    pub age: Duration,
    /// Whether it may be given to who says who he is.
    pub is_public: bool,
    /// By which way the request came: only what comes the same way gets it.
    pub way: Box<str>,
    /// What of the request it depends on: all values of these fields.
    pub vary: Vec<(HeaderName, Vec<HeaderValue>)>,
}

impl Kept {
    /// The same with nothing held but what it needs.
    fn copied(self) -> Self {
        let mut headers = HeaderMap::with_capacity(self.headers.keys_len());
        for (name, value) in &self.headers {
            headers.append(name.clone(), copied(value));
        }
        let vary = self
            .vary
            .into_iter()
            .map(|(name, values)| (name, values.iter().map(copied).collect()))
            .collect();
        Self {
            headers,
            vary,
            body: Bytes::copy_from_slice(&self.body),
            ..self
        }
    }

    fn bytes(&self) -> usize {
        let field = |name: &HeaderName, value: &HeaderValue| {
            name.as_str().len() + value.len() + FIELD_OVERHEAD
        };
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| field(name, value))
            .sum();
        let vary: usize = self
            .vary
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| field(name, value)))
            .sum();
        headers
            + vary
            + self.vary.len() * FIELD_OVERHEAD
            + self.body.len()
            + self.way.len()
            + OVERHEAD
    }

    fn fits(&self, way: &str, request: &HeaderMap) -> bool {
        *self.way == *way
            && self
                .vary
                .iter()
                .all(|(name, values)| request.get_all(name).iter().eq(values))
    }
}

/// A value with a buffer of its own.
fn copied(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// What is kept of a backend.
#[derive(Debug)]
pub struct StaleState {
    name: Arc<str>,
    /// Guards one call.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    answers: LruCache<Box<str>, Vec<Arc<Kept>>>,
    bytes: usize,
    max_bytes: usize,
}

impl StaleState {
    /// Nothing yet, and at most so many bytes.
    #[must_use]
    pub fn new(name: Arc<str>, max_bytes: usize) -> Self {
        Self {
            name,
            inner: Mutex::new(Inner {
                answers: LruCache::unbounded(),
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
        inner.make_room();
    }

    /// Keeps an answer to the address, instead of the one that it had for the same requests.
    pub fn keep(&self, address: &str, answer: Kept) {
        let answer = Arc::new(answer.copied());
        let mut inner = self.lock();
        let mut variants = inner.take(address);
        variants.retain(|other| {
            other.until > answer.at && (other.way != answer.way || other.vary != answer.vary)
        });
        if variants.len() >= MAX_VARIANTS {
            variants.remove(0);
        }
        variants.push(answer);
        inner.bytes += size(address, &variants);
        inner.answers.put(address.into(), variants);
        inner.make_room();
    }

    /// The last answer that may still be given to such a request and is no older than that.
    #[must_use]
    pub fn find(
        &self,
        address: &str,
        way: &str,
        request: &HeaderMap,
        max_age: Duration,
        now: Instant,
    ) -> Option<Arc<Kept>> {
        let is_young = |answer: &Kept| {
            now <= answer.until && now.saturating_duration_since(answer.at) <= max_age
        };
        self.lock()
            .answers
            .get(address)?
            .iter()
            .rev()
            .find(|answer| answer.fits(way, request) && is_young(answer))
            .cloned()
    }

    /// Forgets what was kept of an address.
    pub fn forget(&self, address: &str) {
        self.lock().take(address);
    }

    /// How many addresses, and how many bytes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.answers.len(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, address: &str) -> Vec<Arc<Kept>> {
        let variants = self.answers.pop(address).unwrap_or_default();
        if !variants.is_empty() {
            self.bytes -= size(address, &variants);
        }
        variants
    }

    fn make_room(&mut self) {
        while self.bytes > self.max_bytes {
            let Some((address, variants)) = self.answers.pop_lru() else {
                return;
            };
            self.bytes -= size(&address, &variants);
        }
    }
}

fn size(address: &str, variants: &[Arc<Kept>]) -> usize {
    address.len() + variants.iter().map(|answer| answer.bytes()).sum::<usize>()
}

#[cfg(test)]
mod tests;

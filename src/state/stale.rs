//! Good answers that are kept for the time when there are none.
//!
//! A map by address with a bound on all its bytes: what was used longest ago makes room (the crate `lru` keeps the order). Answers to the same
//! address that differ by what `vary` names stand side by side.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use lru::LruCache;

/// Answers to one address that are told apart by `vary`.
const MAX_VARIANTS: usize = 8;

/// What an answer costs besides its text: the map's place, and the counts of what it shares.
const OVERHEAD: usize = 256;

/// An answer.
#[derive(Debug)]
pub struct Kept {
    /// Its fields, without those that are about one connection.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<Bytes>,
    /// When it came.
    pub at: Instant,
    /// Until when it may be given.
    pub until: Instant,
    /// How old it was then, in seconds.
    pub age: u64,
    /// Whether it may be given to who says who he is.
    pub is_public: bool,
    /// What of a request it depends on.
    pub vary: Vec<(HeaderName, Option<HeaderValue>)>,
}

impl Kept {
    /// The length of its body.
    #[must_use]
    pub fn length(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    fn bytes(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() + self.length() + OVERHEAD
    }

    fn fits(&self, request: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, value)| request.get(name) == value.as_ref())
    }
}

/// What is kept of a backend.
#[derive(Debug)]
pub struct StaleState {
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
    pub fn new(max_bytes: usize) -> Self {
        Self { inner: Mutex::new(Inner { answers: LruCache::unbounded(), bytes: 0, max_bytes }) }
    }

    /// Follows another bound.
    pub fn reconfigure(&self, max_bytes: usize) {
        let mut inner = self.lock();
        inner.max_bytes = max_bytes;
        inner.make_room();
    }

    /// Keeps an answer to the address, instead of the one that it had for the same `vary`.
    pub fn keep(&self, address: &str, answer: Kept) {
        let mut inner = self.lock();
        let mut variants = inner.take(address);
        variants.retain(|other| other.vary != answer.vary);
        if variants.len() >= MAX_VARIANTS {
            variants.remove(0);
        }
        variants.push(Arc::new(answer));
        inner.bytes += size(address, &variants);
        inner.answers.put(address.into(), variants);
        inner.make_room();
    }

    /// The answer that may still be given to such a request.
    #[must_use]
    pub fn find(&self, address: &str, request: &HeaderMap, now: Instant) -> Option<Arc<Kept>> {
        self.lock().answers.get(address)?.iter().find(|answer| answer.fits(request) && now <= answer.until).cloned()
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
            let Some((address, variants)) = self.answers.pop_lru() else { return };
            self.bytes -= size(&address, &variants);
        }
    }
}

fn size(address: &str, variants: &[Arc<Kept>]) -> usize {
    address.len() + variants.iter().map(|answer| answer.bytes()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::resilience::some_instant;

    fn answer(body: &'static str, vary: Option<&'static str>) -> Kept {
        let (at, vary) = (some_instant(), vary.map(|language| (http::header::ACCEPT_LANGUAGE, Some(HeaderValue::from_static(language)))));
        Kept {
            headers: HeaderMap::new(),
            body: vec![Bytes::from_static(body.as_bytes())],
            at,
            until: at + Duration::from_secs(60),
            age: 0,
            is_public: false,
            vary: vary.into_iter().collect(),
        }
    }

    fn asking(language: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::ACCEPT_LANGUAGE, HeaderValue::from_static(language))])
    }

    #[test]
    fn an_answer_is_given_to_whom_it_fits_until_its_time_is_over() {
        let (state, now) = (StaleState::new(1 << 20), some_instant());
        state.keep("shop/a", answer("hello", Some("en")));
        state.keep("shop/a", answer("hallo", Some("de")));
        let body = |language, now| state.find("shop/a", &asking(language), now).map(|kept| kept.body[0].clone());
        assert_eq!(body("en", now), Some(Bytes::from_static(b"hello")));
        assert_eq!(body("de", now), Some(Bytes::from_static(b"hallo")));
        assert_eq!(body("fr", now), None);
        assert_eq!(body("en", now + Duration::from_secs(62)), None);
        state.keep("shop/a", answer("howdy", Some("en")));
        assert_eq!(body("en", now), Some(Bytes::from_static(b"howdy")), "the new one replaces the old");
        state.forget("shop/a");
        assert_eq!((body("de", now), state.size()), (None, (0, 0)));
    }

    #[test]
    fn what_was_used_longest_ago_makes_room_and_the_bytes_are_bounded() {
        let each = size("shop/0", &[Arc::new(answer("hello", None))]);
        let state = StaleState::new(each * 3);
        for page in ["shop/0", "shop/1", "shop/2"] {
            state.keep(page, answer("hello", None));
        }
        assert_eq!(state.size(), (3, each * 3), "exactly full");
        let is_kept = |page| state.find(page, &HeaderMap::new(), some_instant()).is_some();
        assert!(is_kept("shop/0"), "and is now the one used last");
        state.keep("shop/3", answer("hello", None));
        assert_eq!((is_kept("shop/0"), is_kept("shop/1"), is_kept("shop/2"), is_kept("shop/3")), (true, false, true, true));
        state.reconfigure(each - 1);
        assert_eq!(state.size(), (0, 0));
        state.keep("shop/4", answer("hello", None));
        assert_eq!(state.size(), (0, 0), "what is longer than all that may be kept is not");
    }

    #[test]
    fn variants_of_one_address_are_bounded() {
        let state = StaleState::new(1 << 20);
        let languages = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        for language in languages {
            state.keep("shop/a", answer("x", Some(language)));
        }
        let kept: Vec<&str> = languages.into_iter().filter(|language| state.find("shop/a", &asking(language), some_instant()).is_some()).collect();
        assert_eq!(kept, languages[1..]);
    }
}

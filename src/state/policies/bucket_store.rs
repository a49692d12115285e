//! Where token buckets keep their fill: a map with a hard bound.
//!
//! governor does the arithmetic (GCRA: one number per bucket, the theoretical arrival time) and asks a store to apply it. Its
//! own keyed store grows with the keys that strangers choose; this one does not. When it is full, buckets that are full again,
//! which are those that nobody would miss, make room; if there is none, a new key shares one overflow bucket with all others
//! in its place. So a client can never win a fresh bucket by pushing another out (envoyproxy/envoy#19895).
//!
//! A key is the 64-bit hash of what was selected, under a secret of the process: sixteen bytes an entry, nothing allocated for a
//! known key, and nobody outside can choose keys that collide.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::RandomState;
use governor::{nanos::Nanos, state::StateStore};

/// At most so many parts of the map, each behind a lock of its own, so that workers rarely meet.
const MAX_SHARDS: usize = 16;

/// And each for at least so many keys.
const MIN_KEYS_PER_SHARD: usize = 1_024;

/// The keys of one rule.
#[derive(Debug)]
pub struct BoundedStore {
    shards: Vec<Mutex<Shard>>,
    /// What a shard may hold.
    shard_capacity: usize,
    /// The bucket of all keys that found no room.
    overflow_bucket: Mutex<Option<u64>>,
    /// Nanoseconds since the process's epoch, as of the last call.
    now_nanos: AtomicU64,
    overflowed_requests: AtomicU64,
}

/// Guards the buckets of some keys, for one lookup and one change.
#[derive(Debug, Default)]
struct Shard {
    buckets: HashMap<u64, u64, RandomState>,
    /// When the shard was last looked through for buckets that are full again.
    swept_at_nanos: u64,
}

impl BoundedStore {
    /// Makes an empty store for at most `max_keys` keys.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        // Keys spread unevenly; a small store is one shard, so that it holds what it should.
        let shards = (max_keys / MIN_KEYS_PER_SHARD).clamp(1, MAX_SHARDS);
        let shard_capacity = max_keys / shards;
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_capacity,
            overflow_bucket: Mutex::new(None),
            now_nanos: AtomicU64::new(0),
            overflowed_requests: AtomicU64::new(0),
        }
    }

    /// Tells the time before a bucket is asked.
    pub fn advance_clock(&self, nanos: u64) {
        self.now_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// The number of keys.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).buckets.len())
            .sum()
    }

    /// How many requests had to share the overflow bucket since the start.
    #[must_use]
    pub fn overflowed_requests(&self) -> u64 {
        self.overflowed_requests.load(Ordering::Relaxed)
    }

    /// Takes out buckets that are full again, which is as if they had never been.
    pub fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.sweep(now);
            let remaining = shard.buckets.len();
            shard.buckets.shrink_to(remaining * 2);
        }
    }

    /// A store with the same keys, whose buckets are as empty as these in proportion: `scale` is the new burst time over the
    /// old one.
    #[must_use]
    pub fn rescaled(&self, max_keys: usize, scale: f64, now: u64) -> Self {
        let new = Self::new(max_keys);
        let rescale = |arrival: u64| {
            now.saturating_add(
                std::time::Duration::from_nanos(arrival.saturating_sub(now))
                    .mul_f64(scale)
                    .as_nanos()
                    .try_into()
                    .unwrap_or(u64::MAX),
            )
        };
        for old in &self.shards {
            for (key, arrival) in lock(old)
                .buckets
                .iter()
                .filter(|(_, arrival)| **arrival > now)
            {
                let mut shard = lock(new.shard_of(*key));
                if shard.buckets.len() < new.shard_capacity {
                    shard.buckets.insert(*key, rescale(*arrival));
                }
            }
        }
        *lock(&new.overflow_bucket) = lock(&self.overflow_bucket).map(rescale);
        new
    }
}

impl BoundedStore {
    fn shard_of(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[usize::try_from(key % self.shards.len() as u64).unwrap_or_default()]
    }

    /// Remembers a key until then; whether there was room for it.
    pub fn try_insert(&self, key: u64, expires_nanos: u64) -> bool {
        let mut shard = lock(self.shard_of(key));
        if shard.buckets.len() >= self.shard_capacity && !shard.buckets.contains_key(&key) {
            shard.sweep_if_due(self.now_nanos.load(Ordering::Relaxed));
            if shard.buckets.len() >= self.shard_capacity {
                self.overflowed_requests.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        shard.buckets.insert(key, expires_nanos);
        true
    }

    /// Changes the fill of a bucket in one step; `None` leaves it as it is.
    pub fn update<T>(&self, key: u64, change: impl FnOnce(Option<u64>) -> (T, Option<u64>)) -> T {
        let mut shard = lock(self.shard_of(key));
        if let Some(arrival) = shard.buckets.get_mut(&key) {
            let (result, next) = change(Some(*arrival));
            *arrival = next.unwrap_or(*arrival);
            return result;
        }
        if shard.buckets.len() >= self.shard_capacity {
            shard.sweep_if_due(self.now_nanos.load(Ordering::Relaxed));
        }
        if shard.buckets.len() >= self.shard_capacity {
            self.overflowed_requests.fetch_add(1, Ordering::Relaxed);
            drop(shard);
            let mut overflow = lock(&self.overflow_bucket);
            let (result, next) = change(*overflow);
            *overflow = next.or(*overflow);
            return result;
        }
        let (result, next) = change(None);
        if let Some(next) = next {
            shard.buckets.insert(key, next);
        }
        result
    }
}

impl StateStore for BoundedStore {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.update(*key, |arrival| match f(arrival.map(Nanos::new)) {
            Ok((result, next)) => (Ok(result), Some(next.as_u64())),
            Err(rejection) => (Err(rejection), None),
        })
    }
}

impl Shard {
    fn sweep(&mut self, now: u64) {
        self.swept_at_nanos = now;
        self.buckets.retain(|_, arrival| *arrival > now);
    }

    /// Looks through a full shard at most once in ten milliseconds, so that a flood of keys does not make each of them dear.
    fn sweep_if_due(&mut self, now: u64) {
        if now.saturating_sub(self.swept_at_nanos) >= 10_000_000 {
            self.sweep(now);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

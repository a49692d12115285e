//! Storage of token buckets: a map with a fixed maximum number of keys.
//!
//! The crate `governor` computes the fill of a bucket by GCRA and applies it to a store. A
//! bucket is one number, its theoretical arrival time. The keyed store of `governor` grows with
//! each key that clients choose. This store never exceeds its maximum:
//!
//! - If it is full, buckets that are full again are removed, because they hold no information.
//! - If none can be removed, a new key uses one overflow bucket, together with all other keys
//!   without an entry.
//!
//! A client can therefore never obtain a new bucket by evicting another
//! (envoyproxy/envoy#19895).
//!
//! A key is a 64-bit hash of the selected values. For local limits a secret of the process
//! seeds the hash, so clients cannot choose colliding keys. For global limits it is the
//! beginning of a SHA-256 hash, without a secret. An entry takes sixteen bytes, and a lookup of
//! a known key allocates nothing. The module does not know rules or requests.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::RandomState;
use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

use crate::state::policies::tally::Tally;

/// Maximum number of shards. Each shard has its own lock, so that workers rarely wait for each
/// other.
const MAX_SHARDS: usize = 16;

/// Minimum capacity of a shard in keys, unless there is only one shard.
const MIN_KEYS_PER_SHARD: usize = 1_024;

/// Token buckets of one rule, by key.
#[derive(Debug)]
pub struct BoundedStore {
    shards: Vec<Mutex<Shard>>,
    /// Maximum number of keys in one shard.
    shard_capacity: usize,
    /// Arrival time of the overflow bucket, in nanoseconds since the epoch; `None` if it is
    /// full.
    overflow_bucket: Mutex<Option<u64>>,
    /// Latest time that a caller passed, in nanoseconds since the epoch of the process.
    now_nanos: AtomicU64,
    overflowed_requests: Arc<Tally>,
}

/// Part of the map behind one lock, which covers one lookup and one change.
#[derive(Debug, Default)]
struct Shard {
    /// Arrival time of each bucket in nanoseconds since the epoch, by key.
    buckets: HashMap<u64, u64, RandomState>,
    /// Time of the latest sweep, in nanoseconds since the epoch.
    swept_at_nanos: u64,
}

impl BoundedStore {
    /// Creates an empty store for at most `max_keys` keys.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        // Keys are spread unevenly over shards. A small store has one shard, so that it can
        // hold all of its keys.
        let shards = (max_keys / MIN_KEYS_PER_SHARD).clamp(1, MAX_SHARDS);
        let shard_capacity = max_keys / shards;
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_capacity,
            overflow_bucket: Mutex::new(None),
            now_nanos: AtomicU64::new(0),
            overflowed_requests: Arc::default(),
        }
    }

    /// Sets the current time, before a bucket is updated. An earlier time has no effect.
    pub fn advance_clock(&self, nanos: u64) {
        self.now_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// Returns the number of keys with an entry.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().buckets.len())
            .sum()
    }

    /// Creates an empty store for a changed rule, which continues to count in the same tally.
    #[must_use]
    pub fn emptied(&self, max_keys: usize) -> Self {
        Self {
            overflowed_requests: self.overflowed_requests.clone(),
            ..Self::new(max_keys)
        }
    }

    /// Returns how many requests found no room for their key.
    #[must_use]
    pub fn overflowed_requests(&self) -> &Tally {
        &self.overflowed_requests
    }

    /// Removes buckets that are full again. A missing bucket counts as full, so this has no
    /// effect on limits.
    pub fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.sweep(now);
            let remaining = shard.buckets.len();
            shard.buckets.shrink_to(remaining * 2);
        }
    }

    /// Creates a store for a changed rule, in which each bucket has the same relative fill.
    ///
    /// `scale` is the new refill time of an empty bucket, divided by the old one. Keys that
    /// exceed `max_keys` are dropped.
    #[must_use]
    pub fn rescaled(&self, max_keys: usize, scale: f64, now: u64) -> Self {
        let new = self.emptied(max_keys);
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
            for (key, arrival) in old
                .lock()
                .buckets
                .iter()
                .filter(|(_, arrival)| **arrival > now)
            {
                let mut shard = new.shard_of(*key).lock();
                if shard.buckets.len() < new.shard_capacity {
                    shard.buckets.insert(*key, rescale(*arrival));
                }
            }
        }
        *new.overflow_bucket.lock() = self.overflow_bucket.lock().map(rescale);
        new
    }
}

impl BoundedStore {
    fn shard_of(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[usize::try_from(key % self.shards.len() as u64).unwrap_or_default()]
    }

    /// Stores a key until `expires_nanos`, and returns whether there was room for it.
    pub fn try_insert(&self, key: u64, expires_nanos: u64) -> bool {
        let mut shard = self.shard_of(key).lock();
        if shard.buckets.len() >= self.shard_capacity && !shard.buckets.contains_key(&key) {
            shard.sweep_if_due(self.now_nanos.load(Ordering::Relaxed));
            if shard.buckets.len() >= self.shard_capacity {
                self.overflowed_requests.record();
                return false;
            }
        }
        shard.buckets.insert(key, expires_nanos);
        true
    }

    /// Changes the arrival time of a bucket in one step.
    ///
    /// `change` receives the current arrival time, or `None` for a full bucket. It returns a
    /// result and the new arrival time; `None` leaves the bucket unchanged. If there is no room
    /// for a new key, the overflow bucket is changed instead.
    pub fn update<T>(&self, key: u64, change: impl FnOnce(Option<u64>) -> (T, Option<u64>)) -> T {
        let mut shard = self.shard_of(key).lock();
        if let Some(arrival) = shard.buckets.get_mut(&key) {
            let (result, next) = change(Some(*arrival));
            *arrival = next.unwrap_or(*arrival);
            return result;
        }
        if shard.buckets.len() >= self.shard_capacity {
            shard.sweep_if_due(self.now_nanos.load(Ordering::Relaxed));
        }
        if shard.buckets.len() >= self.shard_capacity {
            self.overflowed_requests.record();
            drop(shard);
            let mut overflow = self.overflow_bucket.lock();
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

    /// Sweeps the shard at most once in ten milliseconds, so that many new keys do not each
    /// cause a sweep.
    fn sweep_if_due(&mut self, now: u64) {
        if now.saturating_sub(self.swept_at_nanos) >= 10_000_000 {
            self.sweep(now);
        }
    }
}

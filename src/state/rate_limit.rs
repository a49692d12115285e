//! The token buckets of a rule, on governor.
//!
//! The time is handed in and not read again: a decision of a request sees the one time that the request has. Stored times count
//! from the process's epoch, so that a bucket's fill can be carried over to a rule with another quota.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::StateStore,
};

use super::store::BoundedStore;
use crate::policy::snapshot::{QuotaSpec, RateRuleSpec};

/// The key of a rule that does not tell requests apart.
const EVERYBODY: u64 = 0;

/// The buckets of a rule by its name.
#[derive(Debug)]
pub struct RateLimitState {
    /// `ROUTE/RULE`.
    name: Arc<str>,
    rule: RateRuleSpec,
    epoch: Instant,
    limiter: RateLimiter<u64, Store, HandedIn, NoOpMiddleware<Nanos>>,
    store: Store,
    clock: HandedIn,
}

/// A request did not get its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// When it would.
    pub retry_after: Duration,
}

impl RateLimitState {
    /// Makes full buckets. `epoch` is the same for all of a process.
    #[must_use]
    pub fn new(name: Arc<str>, rule: RateRuleSpec, epoch: Instant) -> Self {
        let store = BoundedStore::new(if rule.is_keyed() { rule.max_keys } else { 1 });
        Self::with_store(name, rule, epoch, store)
    }

    /// Makes buckets for a changed rule that are as full as these in proportion.
    #[must_use]
    pub fn reconfigured(&self, rule: RateRuleSpec, now: Instant) -> Self {
        if rule.selectors != self.rule.selectors {
            return Self::new(self.name.clone(), rule, self.epoch);
        }
        let scale = burst_time(rule.quota).as_secs_f64() / burst_time(self.rule.quota).as_secs_f64();
        let max_keys = if rule.is_keyed() { rule.max_keys } else { 1 };
        let store = self.store.0.rescaled(max_keys, scale, self.nanos(now));
        Self::with_store(self.name.clone(), rule, self.epoch, store)
    }

    fn with_store(name: Arc<str>, rule: RateRuleSpec, epoch: Instant, store: BoundedStore) -> Self {
        let store = Store(Arc::new(store));
        // Made while it still reads zero, so that stored times count from the epoch.
        let clock = HandedIn::default();
        let limiter = RateLimiter::new(quota(rule.quota), store.clone(), clock.clone());
        Self { name, rule, epoch, limiter, store, clock }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What the buckets follow.
    #[must_use]
    pub fn rule(&self) -> &RateRuleSpec {
        &self.rule
    }

    /// Takes the tokens of one request out of the bucket of `key`; `None` is the bucket of everybody.
    ///
    /// # Errors
    /// [`Limited`] if there are not enough.
    pub fn try_acquire(&self, key: Option<u64>, now: Instant) -> Result<(), Limited> {
        let nanos = self.nanos(now);
        self.clock.advance(nanos);
        self.store.0.observe(nanos);
        match self.limiter.check_key_n(&key.unwrap_or(EVERYBODY), self.rule.cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(Limited { retry_after: not_until.wait_time_from(self.clock.now()) }),
            // The compiler of policies refuses a cost above the burst.
            Err(_) => Err(Limited { retry_after: Duration::MAX }),
        }
    }

    /// Keys told apart now, and requests that had to share the overflow bucket.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        (self.store.0.keys(), self.store.0.overflowed())
    }

    /// Forgets keys whose buckets are full again.
    pub fn sweep(&self, now: Instant) {
        self.store.0.sweep(self.nanos(now));
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

fn quota(spec: QuotaSpec) -> Quota {
    let period = interval(spec).max(Duration::from_nanos(1));
    Quota::with_period(period).expect("the period is not zero").allow_burst(spec.burst)
}

/// The time in which one token comes back.
fn interval(spec: QuotaSpec) -> Duration {
    Duration::from_secs(spec.unit_seconds.get()) / spec.requests.get()
}

/// The time in which an empty bucket is full again.
fn burst_time(spec: QuotaSpec) -> Duration {
    interval(spec).max(Duration::from_nanos(1)).saturating_mul(NonZeroU32::get(spec.burst))
}

/// A store that the limiter and the state both hold.
#[derive(Debug, Clone)]
struct Store(Arc<BoundedStore>);

impl StateStore for Store {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

/// A clock that shows what was last handed in; it never goes back.
#[derive(Debug, Clone, Default)]
struct HandedIn(Arc<AtomicU64>);

impl HandedIn {
    fn advance(&self, nanos: u64) {
        self.0.fetch_max(nanos, Ordering::Relaxed);
    }
}

impl Clock for HandedIn {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

// `Nanos` is governor's own instant; the bound is checked here so that a new version of governor fails to compile and not to work.
const _: fn() = || {
    fn is_reference<T: Reference>() {}
    is_reference::<Nanos>();
};

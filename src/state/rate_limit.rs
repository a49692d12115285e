//! The token buckets of a rule.
//!
//! A plain bucket is governor's. What it does not do, to let wait, to begin with a part of the rate and to charge afterwards, is done on
//! the same stored times (`resilience::arrival`).
//!
//! The time is handed in and not read again: a decision of a request sees the one time that the request has. Stored times count
//! from the process's epoch, so that a bucket's fill can be carried over to a rule with another quota.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, Reference},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::StateStore,
};

use super::store::BoundedStore;
use crate::{
    policy::snapshot::RateRuleSpec,
    resilience::{
        arrival::Bucket,
        rate_warm_up::{RateWarmUp, RateWarmUpConfig},
    },
};

/// The key of a rule that does not tell requests apart.
const EVERYBODY: u64 = 0;

/// The buckets of a rule by its name.
#[derive(Debug)]
pub struct RateLimitState {
    /// `ROUTE/RULE`.
    name: Arc<str>,
    rule: RateRuleSpec,
    bucket: Bucket,
    epoch: Instant,
    limiter: RateLimiter<u64, Store, HandedIn, StateInformationMiddleware>,
    store: Store,
    clock: HandedIn,
    /// Guards the price of a moment.
    warm_up: Option<Mutex<RateWarmUp>>,
    warm_up_config: Option<RateWarmUpConfig>,
    /// How many instances the limit is divided by.
    instances: AtomicU32,
    delayed: AtomicU64,
    bad_bills: AtomicU64,
}

/// A request got its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// How long to wait until they are there.
    pub wait: Duration,
    /// Tokens that are left.
    pub left: u32,
    /// In how long there is one more, at the latest.
    pub more: Duration,
}

/// A request did not get its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// When it would.
    pub retry_after: Duration,
}

/// What a rule has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Keys told apart now.
    pub keys: usize,
    /// Requests that had to share the overflow bucket.
    pub overflowed: u64,
    /// Requests that had to wait.
    pub delayed: u64,
    /// Answers whose cost could not be read.
    pub bad_bills: u64,
}

impl RateLimitState {
    /// Makes full buckets. `epoch` is the same for all of a process.
    #[must_use]
    pub fn new(name: Arc<str>, rule: RateRuleSpec, epoch: Instant, now: Instant) -> Self {
        let store = BoundedStore::new(if rule.is_keyed() { rule.max_keys } else { 1 });
        Self::with_store(name, rule, epoch, store, now)
    }

    /// Makes buckets for a changed rule that are as full as these in proportion, and as warm if the warm-up is the same.
    #[must_use]
    pub fn reconfigured(&self, rule: RateRuleSpec, now: Instant) -> Self {
        if rule.selectors != self.rule.selectors {
            return Self::new(self.name.clone(), rule, self.epoch, now);
        }
        let scale =
            rule.quota.burst_time().as_secs_f64() / self.rule.quota.burst_time().as_secs_f64();
        let max_keys = if rule.is_keyed() { rule.max_keys } else { 1 };
        let store = self.store.0.rescaled(max_keys, scale, self.nanos(now));
        let mut new = Self::with_store(self.name.clone(), rule, self.epoch, store, now);
        if new.warm_up_config == self.warm_up_config {
            new.warm_up = self
                .warm_up
                .as_ref()
                .map(|warm_up| Mutex::new(lock(warm_up).clone()));
        }
        new
    }

    fn with_store(
        name: Arc<str>,
        rule: RateRuleSpec,
        epoch: Instant,
        store: BoundedStore,
        now: Instant,
    ) -> Self {
        let store = Store(Arc::new(store));
        // Made while it still reads zero, so that stored times count from the epoch.
        let clock = HandedIn::default();
        let quota = rule.quota;
        let plain = Quota::with_period(quota.interval())
            .expect("the period is not zero")
            .allow_burst(quota.burst);
        let limiter = RateLimiter::new(plain, store.clone(), clock.clone());
        let rate = 1.0 / quota.interval().as_secs_f64();
        let warm_up_config = rule
            .warm_up
            .map(|warm_up| RateWarmUpConfig::new(rate, warm_up.window, warm_up.cold_factor));
        let warm_up = warm_up_config
            .as_ref()
            .map(|config| Mutex::new(RateWarmUp::new(config, now)));
        let bucket = Bucket {
            interval: nanos(quota.interval()),
            burst: quota.burst.get(),
        };
        Self {
            name,
            rule,
            bucket,
            epoch,
            limiter,
            store,
            clock,
            warm_up,
            warm_up_config,
            instances: AtomicU32::new(1),
            delayed: AtomicU64::new(0),
            bad_bills: AtomicU64::new(0),
        }
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

    /// Divides the limit among so many instances, of which this is one.
    pub fn divide(&self, instances: u32) {
        self.instances.store(instances.max(1), Ordering::Relaxed);
    }

    /// By how many instances the limit is divided.
    #[must_use]
    pub fn instances(&self) -> u32 {
        self.instances.load(Ordering::Relaxed)
    }

    /// Takes the tokens of one request out of the bucket of `key`; `None` is the bucket of everybody.
    ///
    /// # Errors
    /// [`Limited`] if there are not enough, and will not be while it may wait.
    pub fn try_acquire(&self, key: Option<u64>, now: Instant) -> Result<Granted, Limited> {
        let (key, at) = (key.unwrap_or(EVERYBODY), self.nanos(now));
        self.store.0.observe(at);
        let Some(cost) = NonZeroU32::new(self.rule.cost)
            .filter(|_| self.rule.is_plain() && self.instances() == 1)
        else {
            return self.take(key, at, now);
        };
        self.clock.advance(at);
        match self.limiter.check_key_n(&key, cost) {
            Ok(Ok(state)) => Ok(Granted {
                wait: Duration::ZERO,
                left: state.remaining_burst_capacity(),
                more: self.rule.quota.interval(),
            }),
            Ok(Err(not_until)) => Err(Limited {
                retry_after: not_until.wait_time_from(self.clock.now()),
            }),
            // The compiler of policies refuses a cost above the burst.
            Err(_) => Err(Limited {
                retry_after: Duration::MAX,
            }),
        }
    }

    /// For what a plain bucket does not do: waiting, a rate that changes, and asking for nothing but that there is no debt.
    fn take(&self, key: u64, at: u64, now: Instant) -> Result<Granted, Limited> {
        let mut warm_up = self.warm_up.as_ref().map(lock);
        let price = warm_up
            .as_mut()
            .zip(self.warm_up_config.as_ref())
            .map_or(1.0, |(warm_up, config)| warm_up.price(config, now));
        let bucket = self.part(price);
        let max_wait = nanos(self.rule.max_wait);
        let taken = self.store.0.change(key, |arrival| {
            match bucket.take(arrival, self.rule.cost, max_wait, at) {
                Ok(taken) => (Ok(taken), Some(taken.arrival)),
                Err(wait) => (Err(wait), None),
            }
        });
        let taken = taken.map_err(|wait| Limited {
            retry_after: Duration::from_nanos(wait),
        })?;
        if let Some(warm_up) = &mut warm_up {
            warm_up.took(self.rule.cost);
        }
        if taken.wait > 0 {
            self.delayed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Granted {
            wait: Duration::from_nanos(taken.wait),
            left: bucket.left(Some(taken.arrival), at),
            more: Duration::from_nanos(bucket.interval),
        })
    }

    /// The bucket with the rate divided by `price` and by the instances. It holds what comes in the same time as ever, and at least what
    /// one request takes.
    fn part(&self, price: f64) -> Bucket {
        let instances = self.instances();
        if instances == 1 && price <= 1.0 {
            return self.bucket;
        }
        let interval = scaled(self.bucket.interval, price * f64::from(instances)).max(1);
        let burst = u32::try_from(self.bucket.burst_time() / interval).unwrap_or(u32::MAX);
        Bucket {
            interval,
            burst: burst.max(self.rule.cost).max(1),
        }
    }

    /// Charges what an answer was worth, as its header says; `None` is one that cannot be read.
    pub fn charge(&self, key: Option<u64>, tokens: Option<u64>, now: Instant) {
        let Some(tokens) = tokens else {
            self.bad_bills.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let at = self.nanos(now);
        self.store.0.observe(at);
        if tokens > 0 {
            let bucket = self.part(1.0);
            self.store.0.change(key.unwrap_or(EVERYBODY), |arrival| {
                ((), Some(bucket.charge(arrival, tokens, at)))
            });
        }
    }

    /// Whether a key of a bucket that is kept elsewhere is told apart from others: as many are as would be here. It is remembered for as
    /// long as an empty bucket takes to be full again.
    pub fn tells_apart(&self, key: u64, now: Instant) -> bool {
        let at = self.nanos(now);
        self.store.0.observe(at);
        self.store
            .0
            .remember(key, at.saturating_add(self.bucket.burst_time()))
    }

    /// What was counted since the rule was last changed.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            keys: self.store.0.keys(),
            overflowed: self.store.0.overflowed(),
            delayed: self.delayed.load(Ordering::Relaxed),
            bad_bills: self.bad_bills.load(Ordering::Relaxed),
        }
    }

    /// Forgets keys whose buckets are full again.
    pub fn sweep(&self, now: Instant) {
        self.store.0.sweep(self.nanos(now));
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn scaled(interval: u64, price: f64) -> u64 {
    nanos(Duration::from_nanos(interval).mul_f64(price))
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
#[path = "rate_limit_tests.rs"]
mod tests;

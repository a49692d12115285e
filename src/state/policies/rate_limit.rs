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

use crate::{
    policy::snapshot::RateLimitRuleSpec,
    resilience::{
        gcra::GcraBucket,
        rate_ramp::{RateRamp, RateRampConfig},
    },
    state::policies::bucket_store::BoundedStore,
};

/// The key of a rule that does not tell requests apart.
const SHARED_KEY: u64 = 0;

/// The buckets of a rule by its name.
#[derive(Debug)]
pub struct RateLimitState {
    /// `ROUTE/RULE`.
    name: Arc<str>,
    rule: RateLimitRuleSpec,
    bucket: GcraBucket,
    epoch: Instant,
    limiter: RateLimiter<u64, SharedStore, ManualClock, StateInformationMiddleware>,
    store: SharedStore,
    clock: ManualClock,
    /// Guards the price of a moment.
    warm_up: Option<Mutex<RateRamp>>,
    warm_up_config: Option<RateRampConfig>,
    /// How many instances the limit is divided by.
    instances: AtomicU32,
    delayed_requests: AtomicU64,
    invalid_costs: AtomicU64,
}

/// A request got its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitGrant {
    /// How long to wait until they are there.
    pub wait: Duration,
    /// Tokens that are left.
    pub remaining: u32,
    /// In how long there is one more, at the latest.
    pub reset_after: Duration,
}

/// A request did not get its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimited {
    /// When it would.
    pub retry_after: Duration,
}

/// What a rule has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitUsage {
    /// Keys told apart now.
    pub keys: usize,
    /// Requests that had to share the overflow bucket.
    pub overflowed_requests: u64,
    /// Requests that had to wait.
    pub delayed_requests: u64,
    /// Answers whose cost could not be read.
    pub invalid_costs: u64,
}

impl RateLimitState {
    /// Makes full buckets. `epoch` is the same for all of a process.
    #[must_use]
    pub fn new(name: Arc<str>, rule: RateLimitRuleSpec, epoch: Instant, now: Instant) -> Self {
        let store = BoundedStore::new(if rule.is_keyed() { rule.max_keys } else { 1 });
        Self::with_store(name, rule, epoch, store, now)
    }

    /// Makes buckets for a changed rule that are as full as these in proportion, and as warm if the warm-up is the same.
    #[must_use]
    pub fn reconfigured(&self, rule: RateLimitRuleSpec, now: Instant) -> Self {
        if rule.selectors != self.rule.selectors {
            return Self::new(self.name.clone(), rule, self.epoch, now);
        }
        let scale = rule.quota.refill_duration().as_secs_f64()
            / self.rule.quota.refill_duration().as_secs_f64();
        let max_keys = if rule.is_keyed() { rule.max_keys } else { 1 };
        let store = self
            .store
            .0
            .rescaled(max_keys, scale, self.nanos_since_epoch(now));
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
        rule: RateLimitRuleSpec,
        epoch: Instant,
        store: BoundedStore,
        now: Instant,
    ) -> Self {
        let store = SharedStore(Arc::new(store));
        // Made while it still reads zero, so that stored times count from the epoch.
        let clock = ManualClock::default();
        let quota = rule.quota;
        let plain = Quota::with_period(quota.emission_interval())
            .expect("the period is not zero")
            .allow_burst(quota.burst);
        let limiter = RateLimiter::new(plain, store.clone(), clock.clone());
        let rate = 1.0 / quota.emission_interval().as_secs_f64();
        let warm_up_config = rule
            .warm_up
            .map(|warm_up| RateRampConfig::new(rate, warm_up.window, warm_up.cold_factor));
        let warm_up = warm_up_config
            .as_ref()
            .map(|config| Mutex::new(RateRamp::new(config, now)));
        let bucket = GcraBucket {
            interval_nanos: to_nanos(quota.emission_interval()),
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
            delayed_requests: AtomicU64::new(0),
            invalid_costs: AtomicU64::new(0),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What the buckets follow.
    #[must_use]
    pub fn rule(&self) -> &RateLimitRuleSpec {
        &self.rule
    }

    /// Divides the limit among so many instances, of which this is one.
    pub fn set_instances(&self, instances: u32) {
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
    pub fn try_acquire(
        &self,
        key: Option<u64>,
        now: Instant,
    ) -> Result<RateLimitGrant, RateLimited> {
        let (key, now_nanos) = (key.unwrap_or(SHARED_KEY), self.nanos_since_epoch(now));
        self.store.0.advance_clock(now_nanos);
        let Some(cost) = NonZeroU32::new(self.rule.cost)
            .filter(|_| self.rule.is_plain_token_bucket() && self.instances() == 1)
        else {
            return self.acquire_from_bucket(key, now_nanos, now);
        };
        self.clock.advance_to(now_nanos);
        match self.limiter.check_key_n(&key, cost) {
            Ok(Ok(state)) => Ok(RateLimitGrant {
                wait: Duration::ZERO,
                remaining: state.remaining_burst_capacity(),
                reset_after: self.rule.quota.emission_interval(),
            }),
            Ok(Err(not_until)) => Err(RateLimited {
                retry_after: not_until.wait_time_from(self.clock.now()),
            }),
            // The compiler of policies refuses a cost above the burst.
            Err(_) => Err(RateLimited {
                retry_after: Duration::MAX,
            }),
        }
    }

    /// For what a plain bucket does not do: waiting, a rate that changes, and asking for nothing but that there is no debt.
    fn acquire_from_bucket(
        &self,
        key: u64,
        now_nanos: u64,
        now: Instant,
    ) -> Result<RateLimitGrant, RateLimited> {
        let mut warm_up = self.warm_up.as_ref().map(lock);
        let cost_factor = warm_up
            .as_mut()
            .zip(self.warm_up_config.as_ref())
            .map_or(1.0, |(warm_up, config)| {
                warm_up.token_cost_factor(config, now)
            });
        let bucket = self.effective_bucket(cost_factor);
        let max_wait = to_nanos(self.rule.max_wait);
        let taken = self.store.0.update(key, |arrival_nanos| {
            match bucket.try_take(arrival_nanos, self.rule.cost, max_wait, now_nanos) {
                Ok(taken) => (Ok(taken), Some(taken.arrival_nanos)),
                Err(wait) => (Err(wait), None),
            }
        });
        let taken = taken.map_err(|wait| RateLimited {
            retry_after: Duration::from_nanos(wait),
        })?;
        if let Some(warm_up) = &mut warm_up {
            warm_up.record_taken(self.rule.cost);
        }
        if taken.wait_nanos > 0 {
            self.delayed_requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(RateLimitGrant {
            wait: Duration::from_nanos(taken.wait_nanos),
            remaining: bucket.remaining(Some(taken.arrival_nanos), now_nanos),
            reset_after: Duration::from_nanos(bucket.interval_nanos),
        })
    }

    /// The bucket with the rate divided by `price` and by the instances. It holds what comes in the same time as ever, and at least what
    /// one request takes.
    fn effective_bucket(&self, cost_factor: f64) -> GcraBucket {
        let instances = self.instances();
        if instances == 1 && cost_factor <= 1.0 {
            return self.bucket;
        }
        let interval = scale_nanos(
            self.bucket.interval_nanos,
            cost_factor * f64::from(instances),
        )
        .max(1);
        let burst = u32::try_from(self.bucket.burst_nanos() / interval).unwrap_or(u32::MAX);
        GcraBucket {
            interval_nanos: interval,
            burst: burst.max(self.rule.cost).max(1),
        }
    }

    /// Charges what an answer was worth, as its header says; `None` is one that cannot be read.
    pub fn charge(&self, key: Option<u64>, tokens: Option<u64>, now: Instant) {
        let Some(tokens) = tokens else {
            self.invalid_costs.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let now_nanos = self.nanos_since_epoch(now);
        self.store.0.advance_clock(now_nanos);
        if tokens > 0 {
            let bucket = self.effective_bucket(1.0);
            self.store
                .0
                .update(key.unwrap_or(SHARED_KEY), |arrival_nanos| {
                    ((), Some(bucket.charge(arrival_nanos, tokens, now_nanos)))
                });
        }
    }

    /// Whether a key of a bucket that is kept elsewhere is told apart from others: as many are as would be here. It is remembered for as
    /// long as an empty bucket takes to be full again.
    pub fn track_key(&self, key: u64, now: Instant) -> bool {
        let now_nanos = self.nanos_since_epoch(now);
        self.store.0.advance_clock(now_nanos);
        self.store
            .0
            .try_insert(key, now_nanos.saturating_add(self.bucket.burst_nanos()))
    }

    /// What was counted since the rule was last changed.
    #[must_use]
    pub fn usage(&self) -> RateLimitUsage {
        RateLimitUsage {
            keys: self.store.0.key_count(),
            overflowed_requests: self.store.0.overflowed_requests(),
            delayed_requests: self.delayed_requests.load(Ordering::Relaxed),
            invalid_costs: self.invalid_costs.load(Ordering::Relaxed),
        }
    }

    /// Forgets keys whose buckets are full again.
    pub fn sweep(&self, now: Instant) {
        self.store.0.sweep(self.nanos_since_epoch(now));
    }

    fn nanos_since_epoch(&self, now: Instant) -> u64 {
        to_nanos(now.saturating_duration_since(self.epoch))
    }
}

fn to_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn scale_nanos(interval: u64, cost_factor: f64) -> u64 {
    to_nanos(Duration::from_nanos(interval).mul_f64(cost_factor))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store that the limiter and the state both hold.
#[derive(Debug, Clone)]
struct SharedStore(Arc<BoundedStore>);

impl StateStore for SharedStore {
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
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn advance_to(&self, nanos: u64) {
        self.0.fetch_max(nanos, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
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
mod tests;

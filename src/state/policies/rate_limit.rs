//! Token buckets of a rate limit rule.
//!
//! This module decides whether a request receives its tokens, and how long it must wait for
//! them. The crate `governor` implements plain buckets. For a wait, a warm-up of the rate or a
//! charge after the response, [`crate::resilience::gcra`] works on the same stored times.
//!
//! The caller passes the time, so that all decisions on a request use the same time. Stored
//! times count from the epoch of the process. The fill of a bucket can thus be carried over to
//! a rule with another quota. The module does not wait and does not know requests: the caller
//! computes the keys.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
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
use parking_lot::Mutex;

use crate::{
    policy::sections::rate_limit::spec::RateLimitRuleSpec,
    resilience::{
        gcra::GcraBucket,
        rate_ramp::{RateRamp, RateRampConfig},
    },
    state::{
        policies::{bucket_store::BoundedStore, tally::Tally},
        table::{BuildContext, Reconfigure},
    },
};

/// Key of the only bucket of a rule without keys.
const SHARED_KEY: u64 = 0;

/// Token buckets of one rule, shared by all requests.
#[derive(Debug)]
pub struct RateLimitState {
    /// Name of the form `ROUTE/RULE`.
    name: Arc<str>,
    rule: RateLimitRuleSpec,
    bucket: GcraBucket,
    epoch: Instant,
    limiter: RateLimiter<u64, SharedStore, ManualClock, StateInformationMiddleware>,
    store: SharedStore,
    clock: ManualClock,
    /// Warm-up of the rate; the lock covers one decision.
    warm_up: Option<Mutex<RateRamp>>,
    warm_up_config: Option<RateRampConfig>,
    /// Number of instances among which the limit is divided, at least 1.
    instances: AtomicU32,
    delayed_requests: Arc<Tally>,
    invalid_costs: Arc<Tally>,
}

/// Tokens that a request received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitGrant {
    /// Time until the tokens are available; zero if they are available now.
    pub wait: Duration,
    /// Number of tokens that remain in the bucket.
    pub remaining: u32,
    /// Maximum time until the next token is refilled.
    pub reset_after: Duration,
}

/// Rejection of a request that did not receive its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimited {
    /// Time after which the request could receive its tokens.
    pub retry_after: Duration,
}

/// Number of keys of a rule, and counts since a time that the method states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitUsage {
    /// Number of keys that have a bucket of their own.
    pub keys: usize,
    /// Number of requests that shared the overflow bucket.
    pub overflowed_requests: u64,
    /// Number of requests that had to wait for their tokens.
    pub delayed_requests: u64,
    /// Number of responses whose cost header could not be parsed.
    pub invalid_costs: u64,
}

impl RateLimitState {
    /// Creates full buckets. `epoch` must be the same for all rules of the process.
    #[must_use]
    pub fn new(name: Arc<str>, rule: RateLimitRuleSpec, epoch: Instant, now: Instant) -> Self {
        let store = BoundedStore::new(if rule.is_keyed() { rule.max_keys } else { 1 });
        Self::with_store(name, rule, epoch, store, now)
    }

    /// Creates the buckets of a changed rule, with the same relative fill.
    ///
    /// A warm-up that stays the same continues. Changed selectors select other keys, so the
    /// buckets start full.
    #[must_use]
    pub fn reconfigured(&self, rule: RateLimitRuleSpec, now: Instant) -> Self {
        let max_keys = if rule.is_keyed() { rule.max_keys } else { 1 };
        let scale = rule.quota.refill_duration().as_secs_f64()
            / self.rule.quota.refill_duration().as_secs_f64();
        let has_same_keys = rule.selectors == self.rule.selectors;
        let store = if has_same_keys {
            self.store
                .0
                .rescaled(max_keys, scale, self.nanos_since_epoch(now))
        } else {
            self.store.0.emptied(max_keys)
        };
        let mut new = Self {
            delayed_requests: self.delayed_requests.clone(),
            invalid_costs: self.invalid_costs.clone(),
            ..Self::with_store(self.name.clone(), rule, self.epoch, store, now)
        };
        if has_same_keys && new.warm_up_config == self.warm_up_config {
            new.warm_up = self
                .warm_up
                .as_ref()
                .map(|warm_up| Mutex::new(warm_up.lock().clone()));
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
        // The clock still reads zero here, so `governor` counts stored times from the epoch.
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
            delayed_requests: Arc::default(),
            invalid_costs: Arc::default(),
        }
    }

    /// Returns the name, of the form `ROUTE/RULE`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the rule that configures the buckets.
    #[must_use]
    pub fn rule(&self) -> &RateLimitRuleSpec {
        &self.rule
    }

    /// Sets the number of instances among which the limit is divided; 0 counts as 1.
    pub fn set_instances(&self, instances: u32) {
        self.instances.store(instances.max(1), Ordering::Relaxed);
    }

    /// Returns the number of instances among which the limit is divided.
    #[must_use]
    pub fn instances(&self) -> u32 {
        self.instances.load(Ordering::Relaxed)
    }

    /// Takes the tokens of one request from the bucket of `key`; `None` selects the only bucket
    /// of a rule without keys.
    ///
    /// # Errors
    /// Returns [`RateLimited`] if the tokens are not available within the maximum wait of the
    /// rule.
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
            // The policy compiler rejects a cost that exceeds the burst.
            Err(_) => Err(RateLimited {
                retry_after: Duration::MAX,
            }),
        }
    }

    /// Decides what a plain bucket cannot: waiting, a rate that changes or is divided, and a
    /// cost of 0. A cost of 0 only requires that the bucket has no debt.
    fn acquire_from_bucket(
        &self,
        key: u64,
        now_nanos: u64,
        now: Instant,
    ) -> Result<RateLimitGrant, RateLimited> {
        let mut warm_up = self.warm_up.as_ref().map(Mutex::lock);
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
            self.delayed_requests.record();
        }
        Ok(RateLimitGrant {
            wait: Duration::from_nanos(taken.wait_nanos),
            remaining: bucket.remaining(Some(taken.arrival_nanos), now_nanos),
            reset_after: Duration::from_nanos(bucket.interval_nanos),
        })
    }

    /// Returns the bucket with its rate divided by `cost_factor` and by the number of
    /// instances.
    ///
    /// An empty bucket still refills in the same time, so its capacity shrinks as well. The
    /// capacity is at least the cost of one request.
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

    /// Charges the cost that a response states in its header. `None` is a cost that could not
    /// be parsed; it is only counted.
    pub fn charge(&self, key: Option<u64>, tokens: Option<u64>, now: Instant) {
        let Some(tokens) = tokens else {
            self.invalid_costs.record();
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

    /// Tracks a key whose bucket a remote engine holds, and returns whether there is room for
    /// it.
    ///
    /// There is room for as many keys as in local buckets. A key is tracked for the time in
    /// which an empty bucket refills.
    pub fn track_key(&self, key: u64, now: Instant) -> bool {
        let now_nanos = self.nanos_since_epoch(now);
        self.store.0.advance_clock(now_nanos);
        self.store
            .0
            .try_insert(key, now_nanos.saturating_add(self.bucket.burst_nanos()))
    }

    /// Returns the counts since the rule was added to the policies.
    #[must_use]
    pub fn usage(&self) -> RateLimitUsage {
        self.read_usage(Tally::total)
    }

    /// Returns the usage with the counts that no earlier call returned, for counter metrics.
    #[must_use]
    pub fn take_unreported_usage(&self) -> RateLimitUsage {
        self.read_usage(Tally::take_unreported)
    }

    fn read_usage(&self, count: fn(&Tally) -> u64) -> RateLimitUsage {
        RateLimitUsage {
            keys: self.store.0.key_count(),
            overflowed_requests: count(self.store.0.overflowed_requests()),
            delayed_requests: count(&self.delayed_requests),
            invalid_costs: count(&self.invalid_costs),
        }
    }

    /// Removes the keys whose buckets are full again.
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

/// Store that `governor` and this state share.
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

/// Clock that returns the latest time that was passed to it, and never goes back.
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

// `Nanos` is a type of `governor`. This check makes an incompatible version fail to compile,
// instead of at run time.
const _: fn() = || {
    fn is_reference<T: Reference>() {}
    is_reference::<Nanos>();
};

impl Reconfigure for RateLimitState {
    type Spec = RateLimitRuleSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(name.clone(), spec.clone(), context.epoch, context.now)
    }

    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self> {
        (self.rule() != spec).then(|| self.reconfigured(spec.clone(), context.now))
    }
}

#[cfg(test)]
mod tests;

//! How an endpoint comes and goes: its age, as far as it is known, and whether it wants to be left alone.

use std::{
    net::UdpSocket,
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http::HeaderMap;

use super::{EndpointState, WARM};
use crate::{
    policy::snapshot::Address,
    resilience::warm_up::WarmUpConfig,
    state::{
        departure,
        youth::{self, Introduction},
    },
};

/// What an endpoint tells of its own coming and going in the head of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    /// Since when it has been there and how it warms up, if that is not long ago.
    introduction: Option<Introduction>,
    /// For how long it wants to be left alone, because it is leaving.
    leaves: Option<Duration>,
}

impl Told {
    /// Reads it; nothing, as most of the time, if it tells nothing.
    #[must_use]
    pub fn of(answer: &HeaderMap) -> Option<Self> {
        let introduction = answer
            .get(youth::STARTED_AT)
            .and_then(|value| youth::introduced(value.to_str().ok()?));
        let leaves = answer
            .get(departure::MARKER)
            .and_then(|value| departure::ttl(value.to_str().ok()?));
        (introduction.is_some() || leaves.is_some()).then_some(Self {
            introduction,
            leaves,
        })
    }

    /// Whether it is leaving.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.leaves.is_some()
    }
}

impl EndpointState {
    /// Takes note of what it tells; for how long it is left alone, if that is news.
    pub fn hear(
        &self,
        told: &Told,
        wall: impl FnOnce() -> SystemTime,
        now: Instant,
    ) -> Option<Duration> {
        // First who it is: a new process at the address has not said anything yet.
        if let Some((started, curve)) = told.introduction {
            self.advertised(started, youth::age(started, wall()), curve, now);
        }
        told.leaves.filter(|ttl| self.leave_alone(*ttl, now))
    }

    /// Begins its warm-up at this time.
    pub fn warm_up_from(&self, start: Instant) {
        let millis = match start.checked_duration_since(self.born) {
            Some(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            None => -i64::try_from(self.born.saturating_duration_since(start).as_millis())
                .unwrap_or(i64::MAX),
        };
        self.warming_since.store(millis, Ordering::Relaxed);
        // Who is the warmest of all is worked out with who may be picked.
        self.counters.version.fetch_add(1, Ordering::Release);
    }

    /// Takes note of the start that the endpoint tells of, in milliseconds since 1970, of its age, and of how it wants to warm up. Another
    /// start than before is another process at the same address: it is new, as new as it says.
    pub fn advertised(
        &self,
        started: u64,
        age: Duration,
        curve: Option<WarmUpConfig>,
        now: Instant,
    ) {
        if self.advertised.swap(started, Ordering::Relaxed) != started {
            // Under the lock, so that nobody judges the new curve by the old start, or the other way round.
            let mut known = self.curve.lock().unwrap_or_else(PoisonError::into_inner);
            let is_warming = curve.as_ref().is_some_and(|curve| age < curve.window());
            *known = curve;
            self.warm_up_from(now.checked_sub(age).unwrap_or(now));
            self.has_curve.store(is_warming, Ordering::Relaxed);
            drop(known);
            // What another process said is no word of this one.
            self.come_back(now);
        }
    }

    /// Whether it warms up as it has told itself to.
    #[must_use]
    pub fn has_curve(&self) -> bool {
        self.has_curve.load(Ordering::Relaxed)
    }

    /// Since when it warms up; `None` if it is warm.
    pub(in crate::state) fn warming_since(&self) -> Option<Instant> {
        let since = self.warming_since.load(Ordering::Relaxed);
        if since == WARM {
            return None;
        }
        let offset = Duration::from_millis(since.unsigned_abs());
        let start = if since < 0 {
            self.born.checked_sub(offset)
        } else {
            self.born.checked_add(offset)
        };
        Some(start.unwrap_or(self.born))
    }

    /// When it is warm, by the policy of the backend or by its own wish; `None` if it is.
    pub(in crate::state) fn warm_at(&self, config: Option<&WarmUpConfig>) -> Option<Instant> {
        let own = || {
            self.has_curve()
                .then(|| {
                    self.curve
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_ref()
                        .map(WarmUpConfig::window)
                })
                .flatten()
        };
        let window = config.map(WarmUpConfig::window).or_else(own)?;
        self.warming_since()
            .and_then(|since| since.checked_add(window))
    }

    /// The share of its weight that it gets for its age, in `0.0..=1.0`: as the policy of the backend says, or else as it wants itself.
    #[must_use]
    pub fn warmth(&self, config: Option<&WarmUpConfig>, now: Instant) -> f64 {
        if config.is_none() && !self.has_curve() {
            return 1.0;
        }
        let age = || {
            self.warming_since()
                .map(|since| now.saturating_duration_since(since))
        };
        if let Some(config) = config {
            return age().map_or(1.0, |age| config.factor(age));
        }
        let curve = self.curve.lock().unwrap_or_else(PoisonError::into_inner);
        match (curve.as_ref(), age()) {
            (Some(curve), Some(age)) if age < curve.window() => curve.factor(age),
            _ => {
                self.has_curve.store(false, Ordering::Relaxed);
                1.0
            }
        }
    }

    /// Leaves the endpoint alone for so long, because it is leaving; whether that is news.
    pub fn leave_alone(&self, ttl: Duration, now: Instant) -> bool {
        let since = self.millis(now);
        self.alone_since
            .store(since.saturating_add(1), Ordering::Relaxed);
        let is_news = self
            .alone_until
            .swap(self.millis(now + ttl).saturating_add(1), Ordering::Relaxed)
            == 0;
        if is_news {
            self.counters.version.fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Until when it is left alone, if it is.
    #[must_use]
    pub fn alone_until(&self) -> Option<Instant> {
        let after = self.alone_until.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.born + Duration::from_millis(after))
    }

    /// Leaves it alone no longer, by what was asked of it at this time; whether that is news. What was asked before it said that it leaves does not count.
    pub fn come_back(&self, asked: Instant) -> bool {
        let is_left_alone = self.alone_until.load(Ordering::Relaxed) != 0;
        if !is_left_alone
            || self.millis(asked).saturating_add(1) < self.alone_since.load(Ordering::Relaxed)
        {
            return false;
        }
        let is_news = self.alone_until.swap(0, Ordering::Relaxed) != 0;
        if is_news {
            self.counters.version.fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Whether its address is one of this host: no other can be bound. Nothing is sent, nothing is received, and it is asked once.
    pub(in crate::state) fn is_here(&self) -> bool {
        *self.is_here.get_or_init(|| match &self.address {
            Address::Tcp(address) => UdpSocket::bind((address.ip(), 0)).is_ok(),
            Address::Unix(_) => true,
        })
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

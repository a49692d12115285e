//! How an endpoint comes and goes: its age, as far as it is known, and whether it wants to be left alone.

use std::{
    net::UdpSocket,
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http::HeaderMap;

use crate::{
    policy::snapshot::EndpointAddress,
    resilience::warm_up::WarmUpConfig,
    state::{
        instance::{
            drain,
            instance_age::{self, AdvertisedStart},
        },
        topology::endpoint::{EndpointState, NOT_WARMING_UP},
    },
};

/// What an endpoint tells of its own coming and going in the head of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerLifecycle {
    /// Since when it has been there and how it warms up, if that is not long ago.
    advertised_start: Option<AdvertisedStart>,
    /// For how long it wants to be left alone, because it is leaving.
    draining_ttl: Option<Duration>,
}

impl PeerLifecycle {
    /// Reads it; nothing, as most of the time, if it tells nothing.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let advertised_start = headers
            .get(instance_age::STARTED_AT_HEADER)
            .and_then(|value| instance_age::parse_started_at(value.to_str().ok()?));
        let draining_ttl = headers
            .get(drain::DRAINING_HEADER)
            .and_then(|value| drain::parse_draining_ttl(value.to_str().ok()?));
        (advertised_start.is_some() || draining_ttl.is_some()).then_some(Self {
            advertised_start,
            draining_ttl,
        })
    }

    /// Whether it is leaving.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining_ttl.is_some()
    }
}

impl EndpointState {
    /// Takes note of what it tells; for how long it is left alone, if that is news.
    pub fn observe(
        &self,
        peer: &PeerLifecycle,
        wall_time: impl FnOnce() -> SystemTime,
        now: Instant,
    ) -> Option<Duration> {
        // First who it is: a new process at the address has not said anything yet.
        if let Some((start_millis, warm_up)) = peer.advertised_start {
            self.record_advertised_start(
                start_millis,
                instance_age::age_from_start(start_millis, wall_time()),
                warm_up,
                now,
            );
        }
        peer.draining_ttl
            .filter(|ttl| self.mark_draining(*ttl, now))
    }

    /// Begins its warm-up at this time.
    pub fn warm_up_from(&self, start: Instant) {
        let millis = match start.checked_duration_since(self.created_at) {
            Some(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            None => -i64::try_from(self.created_at.saturating_duration_since(start).as_millis())
                .unwrap_or(i64::MAX),
        };
        self.warm_up_started_millis.store(millis, Ordering::Relaxed);
        // Who is the warmest of all is worked out with who may be picked.
        self.counters
            .availability_version
            .fetch_add(1, Ordering::Release);
    }

    /// Takes note of the start that the endpoint tells of, in milliseconds since 1970, of its age, and of how it wants to warm up. Another
    /// start than before is another process at the same address: it is new, as new as it says.
    pub fn record_advertised_start(
        &self,
        start_millis: u64,
        age: Duration,
        warm_up: Option<WarmUpConfig>,
        now: Instant,
    ) {
        if self
            .advertised_start_millis
            .swap(start_millis, Ordering::Relaxed)
            != start_millis
        {
            // Under the lock, so that nobody judges the new curve by the old start, or the other way round.
            let mut own_warm_up = self
                .own_warm_up
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let is_warming = warm_up
                .as_ref()
                .is_some_and(|warm_up| age < warm_up.window());
            *own_warm_up = warm_up;
            self.warm_up_from(now.checked_sub(age).unwrap_or(now));
            self.has_own_warm_up.store(is_warming, Ordering::Relaxed);
            drop(own_warm_up);
            // What another process said is no word of this one.
            self.clear_draining(now);
        }
    }

    /// Whether it warms up as it has told itself to.
    #[must_use]
    pub fn has_own_warm_up(&self) -> bool {
        self.has_own_warm_up.load(Ordering::Relaxed)
    }

    /// Since when it warms up; `None` if it is warm.
    pub(crate) fn warm_up_started_at(&self) -> Option<Instant> {
        let started_millis = self.warm_up_started_millis.load(Ordering::Relaxed);
        if started_millis == NOT_WARMING_UP {
            return None;
        }
        let offset = Duration::from_millis(started_millis.unsigned_abs());
        let start = if started_millis < 0 {
            self.created_at.checked_sub(offset)
        } else {
            self.created_at.checked_add(offset)
        };
        Some(start.unwrap_or(self.created_at))
    }

    /// When it is warm, by the policy of the backend or by its own wish; `None` if it is.
    pub(crate) fn warm_up_ends_at(&self, config: Option<&WarmUpConfig>) -> Option<Instant> {
        let own_window = || {
            self.has_own_warm_up()
                .then(|| {
                    self.own_warm_up
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_ref()
                        .map(WarmUpConfig::window)
                })
                .flatten()
        };
        let window = config.map(WarmUpConfig::window).or_else(own_window)?;
        self.warm_up_started_at()
            .and_then(|since| since.checked_add(window))
    }

    /// The share of its weight that it gets for its age, in `0.0..=1.0`: as the policy of the backend says, or else as it wants itself.
    #[must_use]
    pub fn warm_up_factor(&self, config: Option<&WarmUpConfig>, now: Instant) -> f64 {
        if config.is_none() && !self.has_own_warm_up() {
            return 1.0;
        }
        let age = || {
            self.warm_up_started_at()
                .map(|since| now.saturating_duration_since(since))
        };
        if let Some(config) = config {
            return age().map_or(1.0, |age| config.factor(age));
        }
        let own_warm_up = self
            .own_warm_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match (own_warm_up.as_ref(), age()) {
            (Some(own_warm_up), Some(age)) if age < own_warm_up.window() => own_warm_up.factor(age),
            _ => {
                self.has_own_warm_up.store(false, Ordering::Relaxed);
                1.0
            }
        }
    }

    /// Leaves the endpoint alone for so long, because it is leaving; whether that is news.
    pub fn mark_draining(&self, ttl: Duration, now: Instant) -> bool {
        let since_millis = self.millis_since_creation(now);
        self.draining_since_millis
            .store(since_millis.saturating_add(1), Ordering::Relaxed);
        let is_news = self.draining_until_millis.swap(
            self.millis_since_creation(now + ttl).saturating_add(1),
            Ordering::Relaxed,
        ) == 0;
        if is_news {
            self.counters
                .availability_version
                .fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Until when it is left alone, if it is.
    #[must_use]
    pub fn draining_until(&self) -> Option<Instant> {
        let after = self
            .draining_until_millis
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        Some(self.created_at + Duration::from_millis(after))
    }

    /// Leaves it alone no longer, by what was asked of it at this time; whether that is news. What was asked before it said that it leaves does not count.
    pub fn clear_draining(&self, requested_at: Instant) -> bool {
        let is_draining = self.draining_until_millis.load(Ordering::Relaxed) != 0;
        if !is_draining
            || self.millis_since_creation(requested_at).saturating_add(1)
                < self.draining_since_millis.load(Ordering::Relaxed)
        {
            return false;
        }
        let is_news = self.draining_until_millis.swap(0, Ordering::Relaxed) != 0;
        if is_news {
            self.counters
                .availability_version
                .fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Whether its address is one of this host: no other can be bound. Nothing is sent, nothing is received, and it is asked once.
    pub(crate) fn is_local(&self) -> bool {
        *self.is_local.get_or_init(|| match &self.address {
            EndpointAddress::Tcp(address) => UdpSocket::bind((address.ip(), 0)).is_ok(),
            EndpointAddress::Unix(_) => true,
        })
    }

    fn millis_since_creation(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.created_at).as_millis())
            .unwrap_or(u64::MAX - 1)
    }
}

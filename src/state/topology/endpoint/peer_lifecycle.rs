//! Lifecycle of an endpoint as it announces it: its start and its drain.
//!
//! An instance announces in its response headers that it is new or draining. This module
//! decides how long an endpoint counts as draining, and which share of its weight it receives
//! while it warms up. It does not select endpoints, and does not know the others of the
//! backend.

use std::{
    net::UdpSocket,
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    policy::snapshot::EndpointAddress,
    resilience::warm_up::WarmUpConfig,
    state::{
        instance::{
            drain,
            instance_age::{self, AdvertisedStart},
        },
        topology::endpoint::EndpointState,
    },
};

/// Start and drain that an endpoint announces in the headers of a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerLifecycle {
    /// Start and warm-up of the endpoint; `None` if it announces no start.
    advertised_start: Option<AdvertisedStart>,
    /// Time for which the endpoint is draining; `None` if it announces no drain.
    draining_ttl: Option<Duration>,
}

impl PeerLifecycle {
    /// Parses the headers of a response, as far as it has them; `None` if they announce nothing,
    /// as in most responses.
    #[must_use]
    pub fn parse(started_at: Option<&str>, draining: Option<&str>) -> Option<Self> {
        let advertised_start = started_at.and_then(instance_age::parse_started_at);
        let draining_ttl = draining.and_then(drain::parse_draining_ttl);
        (advertised_start.is_some() || draining_ttl.is_some()).then_some(Self {
            advertised_start,
            draining_ttl,
        })
    }

    /// Returns whether the endpoint announces a drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining_ttl.is_some()
    }
}

impl EndpointState {
    /// Applies an announcement. Returns the draining time if the endpoint was not draining
    /// before.
    pub fn observe(
        &self,
        peer: &PeerLifecycle,
        wall_time: impl FnOnce() -> SystemTime,
        now: Instant,
    ) -> Option<Duration> {
        // The start is applied first. If it is another process, the draining mark of the
        // previous one is cleared before a new mark is set.
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

    /// Starts the warm-up of the endpoint at `start`, which may be in the past.
    pub fn warm_up_from(&self, start: Instant) {
        self.warm_up_started_at.store(start);
        // The warmest endpoint is computed together with the selectable endpoints.
        self.counters.record_availability_change();
    }

    /// Records the announced start in milliseconds since 1970, with the age and the warm-up.
    ///
    /// A start that differs from the recorded one belongs to another process at the same
    /// address. That process starts its warm-up at `age`, and is not draining.
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
            // The lock is held for both values, so that `warm_up_factor` never combines a new
            // curve with an old start.
            let mut own_warm_up = self.own_warm_up.lock();
            let is_warming = warm_up
                .as_ref()
                .is_some_and(|warm_up| age < warm_up.window());
            *own_warm_up = warm_up;
            self.warm_up_from(now.checked_sub(age).unwrap_or(now));
            self.has_own_warm_up.store(is_warming, Ordering::Relaxed);
            drop(own_warm_up);
            // The draining mark belongs to the previous process at this address.
            self.clear_draining(now);
        }
    }

    /// Returns whether the endpoint announced a warm-up that may still be in progress.
    #[must_use]
    pub fn has_own_warm_up(&self) -> bool {
        self.has_own_warm_up.load(Ordering::Relaxed)
    }

    /// Returns the start of the latest warm-up, even if it is over; `None` if there was none.
    pub(in crate::state) fn warm_up_started_at(&self) -> Option<Instant> {
        self.warm_up_started_at.load()
    }

    /// Returns when the endpoint is warm, by the policy of the backend or else by its own
    /// announcement. The time may be in the past; `None` means that there is no warm-up.
    pub(in crate::state) fn warm_up_ends_at(
        &self,
        config: Option<&WarmUpConfig>,
    ) -> Option<Instant> {
        let own_window = || {
            self.has_own_warm_up()
                .then(|| self.own_warm_up.lock().as_ref().map(WarmUpConfig::window))
                .flatten()
        };
        let window = config.map(WarmUpConfig::window).or_else(own_window)?;
        self.warm_up_started_at()
            .and_then(|since| since.checked_add(window))
    }

    /// Returns the share of its weight that the endpoint receives for its age, in `0.0..=1.0`.
    ///
    /// The policy of the backend (`config`) takes precedence over the announcement of the
    /// endpoint.
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
        let own_warm_up = self.own_warm_up.lock();
        match (own_warm_up.as_ref(), age()) {
            (Some(own_warm_up), Some(age)) if age < own_warm_up.window() => own_warm_up.factor(age),
            _ => {
                self.has_own_warm_up.store(false, Ordering::Relaxed);
                1.0
            }
        }
    }

    /// Marks the endpoint as draining until `now + ttl`, and returns whether it was not marked
    /// before.
    pub fn mark_draining(&self, ttl: Duration, now: Instant) -> bool {
        self.draining_since.store(now);
        let is_news = self.draining_until.replace(now + ttl).is_none();
        if is_news {
            self.counters.record_availability_change();
        }
        is_news
    }

    /// Returns the time until which the endpoint is draining; `None` if it is not.
    #[must_use]
    pub fn draining_until(&self) -> Option<Instant> {
        self.draining_until.load()
    }

    /// Clears the draining mark, and returns whether the endpoint was marked.
    ///
    /// `requested_at` is the time at which the request was sent whose response clears the mark.
    /// A request that was sent before the latest announcement has no effect.
    pub fn clear_draining(&self, requested_at: Instant) -> bool {
        // `mark_draining` stores the announcement before the mark. Whoever sees the mark here
        // therefore sees its announcement.
        if self.draining_until.load().is_none() {
            return false;
        }
        let announced_at = self.draining_since.load();
        if announced_at.is_some_and(|announced_at| requested_at < announced_at) {
            return false;
        }
        let is_news = self.draining_until.take().is_some();
        if is_news {
            self.counters.record_availability_change();
        }
        is_news
    }

    /// Returns whether the address of the endpoint belongs to this host.
    ///
    /// Only a local address can be bound, so a UDP socket is bound to it. Nothing is sent, and
    /// the result is cached.
    pub(in crate::state) fn is_local(&self) -> bool {
        *self.is_local.get_or_init(|| match &self.address {
            EndpointAddress::Tcp(address) => UdpSocket::bind((address.ip(), 0)).is_ok(),
            EndpointAddress::Unix(_) => true,
        })
    }
}

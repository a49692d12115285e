//! How new this instance is: since when it has been ready, what it tells callers about that, and what it takes meanwhile.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    policy::snapshot::InstanceWarmUpSpec,
    resilience::{
        Mode,
        ratio::Ratio,
        warm_up::{DeterministicSampler, WarmUpConfig},
    },
};

/// The field in which an instance says since when it has been ready.
pub const STARTED_AT_HEADER: &str = "x-outrigger-started-at";

/// So long an instance tells when it started, if its own warm-up does not take longer; those of its callers are shorter.
const MIN_ADVERTISING_PERIOD: Duration = Duration::from_mins(15);

/// A stranger that says that it warms up for longer does not say how it warms up.
const MAX_PEER_WARM_UP_WINDOW: Duration = Duration::from_hours(24);

/// How new this instance is.
#[derive(Debug)]
pub struct InstanceAge {
    created_at: Instant,
    /// When it first was ready, in milliseconds after `born`, plus one; 0 is never.
    ready_since_millis: AtomicU64,
    /// For how many milliseconds another process had been it before this one.
    inherited_age_millis: AtomicU64,
    /// The same in milliseconds since 1970; 0 while that is not to be told.
    advertised_start_millis: AtomicU64,
    /// Guards the decision about one request.
    sampler: Mutex<DeterministicSampler>,
}

impl InstanceAge {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            created_at: now,
            ready_since_millis: AtomicU64::new(0),
            inherited_age_millis: AtomicU64::new(0),
            advertised_start_millis: AtomicU64::new(0),
            sampler: Mutex::default(),
        }
    }

    /// It is ready for the first time.
    pub(crate) fn mark_ready(&self, now: Instant, wall_time: SystemTime) {
        let inherited_age =
            Duration::from_millis(self.inherited_age_millis.load(Ordering::Relaxed));
        self.ready_since_millis.store(
            to_millis(now.saturating_duration_since(self.created_at)) + 1,
            Ordering::Relaxed,
        );
        self.advertised_start_millis.store(
            to_millis(
                wall_time
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .saturating_sub(inherited_age),
            ),
            Ordering::Relaxed,
        );
    }

    /// It goes on with what another process has been for so long: the app behind it is no newer.
    pub fn inherit_age(&self, age: Duration) {
        self.inherited_age_millis
            .store(to_millis(age), Ordering::Relaxed);
    }

    /// For how long it has been ready, or was when it first was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let ready_since_millis = self
            .ready_since_millis
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        Some(
            now.saturating_duration_since(
                self.created_at + Duration::from_millis(ready_since_millis),
            ) + Duration::from_millis(self.inherited_age_millis.load(Ordering::Relaxed)),
        )
    }

    /// Whether there is something to tell.
    #[must_use]
    pub fn is_advertising(&self) -> bool {
        self.advertised_start_millis.load(Ordering::Relaxed) != 0
    }

    /// What callers are told: since when it runs, in seconds since 1970, and how it wants to warm up.
    #[must_use]
    pub fn started_at_header(&self, warm_up: Option<&InstanceWarmUpSpec>) -> Option<String> {
        let start_millis = self.advertised_start_millis.load(Ordering::Relaxed);
        let mut header = (start_millis != 0)
            .then(|| format!("{}.{:03}", start_millis / 1_000, start_millis % 1_000))?;
        if let Some(InstanceWarmUpSpec { config, .. }) =
            warm_up.filter(|warm_up| warm_up.mode == Mode::Enforce)
        {
            // Writing to a string cannot fail.
            _ = write!(
                header,
                "; window={}; aggression={}; min={}",
                config.window().as_secs_f64(),
                config.aggression(),
                config.min_factor().value() * 100.0
            );
        }
        Some(header)
    }

    /// Ceases to tell of its start when that is so long ago that nobody can be warming up for it.
    pub fn stop_advertising(&self, warm_up: Option<&InstanceWarmUpSpec>, now: Instant) {
        let advertising_period = warm_up.map_or(MIN_ADVERTISING_PERIOD, |warm_up| {
            warm_up.config.window().max(MIN_ADVERTISING_PERIOD)
        });
        if self.age(now).is_some_and(|age| age > advertising_period) {
            self.advertised_start_millis.store(0, Ordering::Relaxed);
        }
    }

    /// The part of its share that it takes now, if it is not all of it.
    #[must_use]
    pub fn warm_up_factor(&self, config: &WarmUpConfig, now: Instant) -> Option<f64> {
        let age = self.age(now)?;
        (age < config.window()).then(|| config.factor(age))
    }

    /// Whether the next request is of the part that it takes.
    #[must_use]
    pub fn admits(&self, ratio: f64) -> bool {
        self.sampler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admits(ratio)
    }
}

fn to_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

/// What another instance tells of itself: when it started, in milliseconds since 1970, and how it wants to warm up.
pub type AdvertisedStart = (u64, Option<WarmUpConfig>);

/// How old that makes it. A start in the future is a clock that differs; then it has just started.
#[must_use]
pub fn age_from_start(started_millis: u64, wall_time: SystemTime) -> Duration {
    let start = UNIX_EPOCH.checked_add(Duration::from_millis(started_millis));
    start
        .and_then(|start| wall_time.duration_since(start).ok())
        .unwrap_or_default()
}

/// Reads what another instance tells of itself.
#[must_use]
pub fn parse_started_at(header: &str) -> Option<AdvertisedStart> {
    let mut parameters = header.split(';').map(str::trim);
    let started = Duration::try_from_secs_f64(parameters.next()?.parse().ok()?).ok()?;
    let (mut window, mut aggression, mut minimum) = (None, 1.0, 10.0);
    for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
        let Ok(value) = value.parse::<f64>() else {
            continue;
        };
        match name {
            "window" => {
                window = Duration::try_from_secs_f64(value)
                    .ok()
                    .filter(|window| *window <= MAX_PEER_WARM_UP_WINDOW)
            }
            "aggression" => aggression = value,
            "min" => minimum = value,
            _ => {}
        }
    }
    let warm_up = window
        .zip(Ratio::from_percent(minimum).ok())
        .and_then(|(window, minimum)| WarmUpConfig::try_new(window, aggression, minimum).ok());
    Some((u64::try_from(started.as_millis()).ok()?, warm_up))
}

#[cfg(test)]
mod tests;

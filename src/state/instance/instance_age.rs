//! Time since this instance became ready, and its warm-up.
//!
//! A new instance announces its start to clients, so that they send it less traffic at first.
//! This module decides how long the start is announced, and which share of requests the
//! instance admits while it warms up. It also parses the announcements of other instances. It
//! does not reject requests, and does not know whether another replica exists.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::{
    policy::snapshot::InstanceWarmUpSpec,
    resilience::{
        Mode,
        ratio::Ratio,
        warm_up::{DeterministicSampler, WarmUpConfig},
    },
    state::{atomic_instant::AtomicInstant, instance::header_parameters::split_parameters},
};

/// Response header in which an instance announces when it became ready.
pub const STARTED_AT_HEADER: &str = "x-outrigger-started-at";

/// Minimum time for which an instance announces its start. A longer warm-up extends it.
/// Warm-ups that clients configure are assumed to be shorter.
const MIN_ADVERTISING_PERIOD: Duration = Duration::from_mins(15);

/// Maximum warm-up window accepted from another instance. An announced warm-up with a longer
/// window is ignored.
const MAX_PEER_WARM_UP_WINDOW: Duration = Duration::from_hours(24);

/// Time since this instance first became ready, and its announcement.
#[derive(Debug)]
pub struct InstanceAge {
    /// Time of the first readiness; none before it.
    ready_since: AtomicInstant,
    /// Time for which a predecessor process was ready, in milliseconds.
    inherited_age_millis: AtomicU64,
    /// Announced start in milliseconds since 1970; 0 while it is not announced.
    advertised_start_millis: AtomicU64,
    /// Latest value of the header; `None` before the first.
    announcement: ArcSwapOption<Announcement>,
    /// Selects the requests to admit; the lock covers the decision on one request.
    sampler: Mutex<DeterministicSampler>,
}

/// Value of [`STARTED_AT_HEADER`], and what it was formatted from.
#[derive(Debug)]
struct Announcement {
    start_millis: u64,
    warm_up: Option<InstanceWarmUpSpec>,
    text: Arc<str>,
}

impl InstanceAge {
    pub(in crate::state) fn new(now: Instant) -> Self {
        Self {
            ready_since: AtomicInstant::new(now, None),
            inherited_age_millis: AtomicU64::new(0),
            advertised_start_millis: AtomicU64::new(0),
            announcement: ArcSwapOption::empty(),
            sampler: Mutex::default(),
        }
    }

    /// Records the first readiness, and starts to announce it.
    pub(in crate::state) fn mark_ready(&self, now: Instant, wall_time: SystemTime) {
        let inherited_age =
            Duration::from_millis(self.inherited_age_millis.load(Ordering::Relaxed));
        self.ready_since.store(now);
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

    /// Adds the time for which a predecessor process was ready. The app behind both processes
    /// is the same, so it is no newer.
    pub fn inherit_age(&self, age: Duration) {
        self.inherited_age_millis
            .store(to_millis(age), Ordering::Relaxed);
    }

    /// Returns the time since the first readiness, including that of a predecessor process.
    ///
    /// Returns `None` before the first readiness. A later loss of readiness has no effect.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let own_age = now.saturating_duration_since(self.ready_since.load()?);
        let inherited_age =
            Duration::from_millis(self.inherited_age_millis.load(Ordering::Relaxed));
        Some(own_age + inherited_age)
    }

    /// Returns whether the start is announced to clients.
    #[must_use]
    pub fn is_advertising(&self) -> bool {
        self.advertised_start_millis.load(Ordering::Relaxed) != 0
    }

    /// Returns the value of [`STARTED_AT_HEADER`], or `None` if the header is not sent.
    ///
    /// The value states the start in seconds since 1970. If the warm-up is enforced, its window
    /// in seconds, its aggression and its minimum in percent follow. It is formatted once for
    /// each start and warm-up.
    #[must_use]
    pub fn started_at_header(&self, warm_up: Option<&InstanceWarmUpSpec>) -> Option<Arc<str>> {
        let start_millis = self.advertised_start_millis.load(Ordering::Relaxed);
        if start_millis == 0 {
            return None;
        }
        let announcement = self.announcement.load();
        if let Some(announcement) = &*announcement
            && announcement.start_millis == start_millis
            && announcement.warm_up.as_ref() == warm_up
        {
            return Some(announcement.text.clone());
        }
        let text: Arc<str> = format_start(start_millis, warm_up).into();
        self.announcement.store(Some(Arc::new(Announcement {
            start_millis,
            warm_up: warm_up.cloned(),
            text: text.clone(),
        })));
        Some(text)
    }

    /// Stops announcing the start after 15 minutes, or after the warm-up window if that is
    /// longer. No client then reduces its traffic because of it.
    pub fn stop_advertising(&self, warm_up: Option<&InstanceWarmUpSpec>, now: Instant) {
        let advertising_period = warm_up.map_or(MIN_ADVERTISING_PERIOD, |warm_up| {
            warm_up.config.window().max(MIN_ADVERTISING_PERIOD)
        });
        if self.age(now).is_some_and(|age| age > advertising_period) {
            self.advertised_start_millis.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the share of requests that this instance admits while it warms up, in
    /// `0.0..=1.0`.
    ///
    /// Returns `None` before the first readiness and after the warm-up window.
    #[must_use]
    pub fn warm_up_factor(&self, config: &WarmUpConfig, now: Instant) -> Option<f64> {
        let age = self.age(now)?;
        (age < config.window()).then(|| config.factor(age))
    }

    /// Returns whether the next request is within the admitted share `ratio`, in `0.0..=1.0`.
    #[must_use]
    pub fn admits(&self, ratio: f64) -> bool {
        self.sampler.lock().admits(ratio)
    }
}

fn to_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

/// Start in milliseconds since 1970 and warm-up, as another instance announces them.
pub type AdvertisedStart = (u64, Option<WarmUpConfig>);

/// Returns the age of an instance from its announced start.
///
/// A start in the future means that the clocks differ, and the age is then zero.
#[must_use]
pub fn age_from_start(started_millis: u64, wall_time: SystemTime) -> Duration {
    let start = UNIX_EPOCH.checked_add(Duration::from_millis(started_millis));
    start
        .and_then(|start| wall_time.duration_since(start).ok())
        .unwrap_or_default()
}

/// Parses a [`STARTED_AT_HEADER`] value; `None` if it contains no valid start.
///
/// A missing or invalid warm-up is ignored. Its aggression defaults to 1, its minimum to 10
/// percent.
#[must_use]
pub fn parse_started_at(header: &str) -> Option<AdvertisedStart> {
    let (started, parameters) = split_parameters(header);
    let started = Duration::try_from_secs_f64(started.parse().ok()?).ok()?;
    let (mut window, mut aggression, mut minimum) = (None, 1.0, 10.0);
    for (name, value) in parameters {
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

fn format_start(start_millis: u64, warm_up: Option<&InstanceWarmUpSpec>) -> String {
    let mut text = format!("{}.{:03}", start_millis / 1_000, start_millis % 1_000);
    if let Some(InstanceWarmUpSpec { config, .. }) =
        warm_up.filter(|warm_up| warm_up.mode == Mode::Enforce)
    {
        // Writing to a string cannot fail.
        _ = write!(
            text,
            "; window={}; aggression={}; min={}",
            config.window().as_secs_f64(),
            config.aggression(),
            config.min_factor().value() * 100.0
        );
    }
    text
}

#[cfg(test)]
mod tests;

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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            created_at: now,
            ready_since_millis: AtomicU64::new(0),
            inherited_age_millis: AtomicU64::new(0),
            advertised_start_millis: AtomicU64::new(0),
            sampler: Mutex::default(),
        }
    }

    /// It is ready for the first time.
    pub(super) fn mark_ready(&self, now: Instant, wall_time: SystemTime) {
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
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    fn spec(mode: Mode) -> InstanceWarmUpSpec {
        let config = WarmUpConfig::try_new(
            Duration::from_millis(2_500),
            1.0,
            Ratio::from_percent(20.0).expect("20 %"),
        );
        InstanceWarmUpSpec {
            mode,
            config: config.expect("fine"),
        }
    }

    #[test]
    fn a_started_at_header_round_trips() {
        let start = some_instant();
        let instance_age = InstanceAge::new(start);
        assert_eq!(
            instance_age.started_at_header(None),
            None,
            "it is not ready yet"
        );
        instance_age.mark_ready(start, UNIX_EPOCH + Duration::from_millis(1_700_000_000_042));
        assert_eq!(
            instance_age
                .started_at_header(None)
                .as_deref()
                .and_then(parse_started_at),
            Some((1_700_000_000_042, None))
        );
        assert_eq!(
            instance_age.started_at_header(Some(&spec(Mode::Shadow))),
            instance_age.started_at_header(None),
            "shadow mode tells nothing"
        );
        let header = instance_age
            .started_at_header(Some(&spec(Mode::Enforce)))
            .expect("it is young");
        assert_eq!(header, "1700000000.042; window=2.5; aggression=1; min=20");
        assert_eq!(
            parse_started_at(&header),
            Some((1_700_000_000_042, Some(spec(Mode::Enforce).config)))
        );
        instance_age.stop_advertising(None, start + MIN_ADVERTISING_PERIOD);
        assert!(instance_age.is_advertising());
        instance_age.stop_advertising(
            None,
            start + MIN_ADVERTISING_PERIOD + Duration::from_secs(1),
        );
        assert_eq!(instance_age.started_at_header(None), None);
    }

    #[test]
    fn a_successor_process_inherits_the_age() {
        let start = some_instant();
        let instance_age = InstanceAge::new(start);
        instance_age.inherit_age(Duration::from_millis(2_000));
        instance_age.mark_ready(start, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(
            instance_age.started_at_header(None).as_deref(),
            Some("1699999998.000")
        );
        assert_eq!(
            instance_age.warm_up_factor(&spec(Mode::Enforce).config, start),
            Some(0.8)
        );
    }

    #[test]
    fn unparsable_parameters_are_ignored() {
        let table = [
            ("1700000000", Some(false)),
            ("", None),
            ("soon", None),
            ("-3", None),
            ("1; window=0", Some(false)),
            ("1; window=9; aggression=-1", Some(false)),
            ("1; window=9; min=900", Some(false)),
            ("1;window=9;new=1", Some(true)),
            ("1; window=86401", Some(false)),
            ("1; window=1e19", Some(false)),
            ("1; window=1e300", Some(false)),
            ("1e300", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_started_at(text).map(|(_, warm_up)| warm_up.is_some()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn the_warm_up_factor_grows_with_age() {
        let start = some_instant();
        let instance_age = InstanceAge::new(start);
        let config = spec(Mode::Enforce).config;
        let at =
            |millis| instance_age.warm_up_factor(&config, start + Duration::from_millis(millis));
        assert_eq!(at(9_000), None, "it is not ready yet");
        instance_age.mark_ready(start + Duration::from_secs(10), UNIX_EPOCH);
        assert_eq!(
            (at(10_000), at(12_000), at(12_500)),
            (Some(0.4), Some(0.8), None)
        );
    }
}

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
    policy::snapshot::OwnWarmUpSpec,
    resilience::{
        Mode,
        ratio::Ratio,
        warm_up::{Trickle, WarmUpConfig},
    },
};

/// The field in which an instance says since when it has been ready.
pub const STARTED_AT: &str = "x-outrigger-started-at";

/// So long an instance tells when it started, if its own warm-up does not take longer; those of its callers are shorter.
const YOUNG: Duration = Duration::from_mins(15);

/// A stranger that says that it warms up for longer does not say how it warms up.
const MAX_WINDOW: Duration = Duration::from_hours(24);

/// How new this instance is.
#[derive(Debug)]
pub struct Youth {
    born: Instant,
    /// When it first was ready, in milliseconds after `born`, plus one; 0 is never.
    ready_since: AtomicU64,
    /// For how many milliseconds another process had been it before this one.
    before: AtomicU64,
    /// The same in milliseconds since 1970; 0 while that is not to be told.
    told: AtomicU64,
    /// Guards the decision about one request.
    trickle: Mutex<Trickle>,
}

impl Youth {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            born: now,
            ready_since: AtomicU64::new(0),
            before: AtomicU64::new(0),
            told: AtomicU64::new(0),
            trickle: Mutex::default(),
        }
    }

    /// It is ready for the first time.
    pub(super) fn begin(&self, now: Instant, wall: SystemTime) {
        let before = Duration::from_millis(self.before.load(Ordering::Relaxed));
        self.ready_since.store(
            millis(now.saturating_duration_since(self.born)) + 1,
            Ordering::Relaxed,
        );
        self.told.store(
            millis(
                wall.duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .saturating_sub(before),
            ),
            Ordering::Relaxed,
        );
    }

    /// It goes on with what another process has been for so long: the app behind it is no newer.
    pub fn continues(&self, age: Duration) {
        self.before.store(millis(age), Ordering::Relaxed);
    }

    /// For how long it has been ready, or was when it first was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let after = self.ready_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            now.saturating_duration_since(self.born + Duration::from_millis(after))
                + Duration::from_millis(self.before.load(Ordering::Relaxed)),
        )
    }

    /// Whether there is something to tell.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed) != 0
    }

    /// What callers are told: since when it runs, in seconds since 1970, and how it wants to warm up.
    #[must_use]
    pub fn introduction(&self, warm_up: Option<&OwnWarmUpSpec>) -> Option<String> {
        let told = self.told.load(Ordering::Relaxed);
        let mut text = (told != 0).then(|| format!("{}.{:03}", told / 1_000, told % 1_000))?;
        if let Some(OwnWarmUpSpec { config, .. }) =
            warm_up.filter(|warm_up| warm_up.mode == Mode::Enforce)
        {
            // Writing to a string cannot fail.
            _ = write!(
                text,
                "; window={}; aggression={}; min={}",
                config.window().as_secs_f64(),
                config.aggression(),
                config.minimum().value() * 100.0
            );
        }
        Some(text)
    }

    /// Ceases to tell of its start when that is so long ago that nobody can be warming up for it.
    pub fn grow_up(&self, warm_up: Option<&OwnWarmUpSpec>, now: Instant) {
        let longest = warm_up.map_or(YOUNG, |warm_up| warm_up.config.window().max(YOUNG));
        if self.age(now).is_some_and(|age| age > longest) {
            self.told.store(0, Ordering::Relaxed);
        }
    }

    /// The part of its share that it takes now, if it is not all of it.
    #[must_use]
    pub fn warmth(&self, config: &WarmUpConfig, now: Instant) -> Option<f64> {
        let age = self.age(now)?;
        (age < config.window()).then(|| config.factor(age))
    }

    /// Whether the next request is of the part that it takes.
    #[must_use]
    pub fn takes(&self, part: f64) -> bool {
        self.trickle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admits(part)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

/// What another instance tells of itself: when it started, in milliseconds since 1970, and how it wants to warm up.
pub type Introduction = (u64, Option<WarmUpConfig>);

/// How old that makes it. A start in the future is a clock that differs; then it has just started.
#[must_use]
pub fn age(started: u64, wall: SystemTime) -> Duration {
    let start = UNIX_EPOCH.checked_add(Duration::from_millis(started));
    start
        .and_then(|start| wall.duration_since(start).ok())
        .unwrap_or_default()
}

/// Reads what another instance tells of itself.
#[must_use]
pub fn introduced(text: &str) -> Option<Introduction> {
    let mut parts = text.split(';').map(str::trim);
    let started = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    let (mut window, mut aggression, mut minimum) = (None, 1.0, 10.0);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        let Ok(value) = value.parse::<f64>() else {
            continue;
        };
        match name {
            "window" => {
                window = Duration::try_from_secs_f64(value)
                    .ok()
                    .filter(|window| *window <= MAX_WINDOW)
            }
            "aggression" => aggression = value,
            "min" => minimum = value,
            _ => {}
        }
    }
    let curve = window
        .zip(Ratio::from_percent(minimum).ok())
        .and_then(|(window, minimum)| WarmUpConfig::try_new(window, aggression, minimum).ok());
    Some((u64::try_from(started.as_millis()).ok()?, curve))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    fn spec(mode: Mode) -> OwnWarmUpSpec {
        let config = WarmUpConfig::try_new(
            Duration::from_millis(2_500),
            1.0,
            Ratio::from_percent(20.0).expect("20 %"),
        );
        OwnWarmUpSpec {
            mode,
            config: config.expect("fine"),
        }
    }

    #[test]
    fn what_one_tells_another_reads() {
        let start = some_instant();
        let youth = Youth::new(start);
        assert_eq!(youth.introduction(None), None, "it is not ready yet");
        youth.begin(start, UNIX_EPOCH + Duration::from_millis(1_700_000_000_042));
        assert_eq!(
            youth.introduction(None).as_deref().and_then(introduced),
            Some((1_700_000_000_042, None))
        );
        assert_eq!(
            youth.introduction(Some(&spec(Mode::Shadow))),
            youth.introduction(None),
            "shadow mode tells nothing"
        );
        let told = youth
            .introduction(Some(&spec(Mode::Enforce)))
            .expect("it is young");
        assert_eq!(told, "1700000000.042; window=2.5; aggression=1; min=20");
        assert_eq!(
            introduced(&told),
            Some((1_700_000_000_042, Some(spec(Mode::Enforce).config)))
        );
        youth.grow_up(None, start + YOUNG);
        assert!(youth.is_told());
        youth.grow_up(None, start + YOUNG + Duration::from_secs(1));
        assert_eq!(youth.introduction(None), None);
    }

    #[test]
    fn a_process_that_takes_over_is_as_old_as_the_one_before_it() {
        let start = some_instant();
        let youth = Youth::new(start);
        youth.continues(Duration::from_millis(2_000));
        youth.begin(start, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(youth.introduction(None).as_deref(), Some("1699999998.000"));
        assert_eq!(youth.warmth(&spec(Mode::Enforce).config, start), Some(0.8));
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
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
                introduced(text).map(|(_, curve)| curve.is_some()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn the_part_that_it_takes_grows_with_its_age() {
        let start = some_instant();
        let youth = Youth::new(start);
        let config = spec(Mode::Enforce).config;
        let at = |millis| youth.warmth(&config, start + Duration::from_millis(millis));
        assert_eq!(at(9_000), None, "it is not ready yet");
        youth.begin(start + Duration::from_secs(10), UNIX_EPOCH);
        assert_eq!(
            (at(10_000), at(12_000), at(12_500)),
            (Some(0.4), Some(0.8), None)
        );
    }
}

//! Who is refused while the instance is short of something.
//!
//! Signals such as the CPU that is used rise to a level when they have been at or above it for a while, and fall when they have been well
//! below it for longer: what flaps helps nobody. The instance is at the highest level of any of its signals. At each, the classes of least
//! priority are refused first, so that what matters most is served to the end (the "criticality" of the SRE book, "Handling Overload").
//!
//! | level | critical | high | normal | low |
//! | --- | --- | --- | --- | --- |
//! | calm | | | | |
//! | warning | | | | refused |
//! | critical | | | refused | refused |
//!
//! The same order holds for places in flight: each class fills a limit only so far, and the highest all of it.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::ratio::Ratio;

/// How long a signal is at a level before it counts.
const RISE: Duration = Duration::from_secs(10);

/// How long it is below before it counts no more.
const FALL: Duration = Duration::from_secs(30);

/// How far it has to be below.
const BELOW: f64 = 0.9;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The share of the CPU that is used of what may be.
    Cpu,
    /// The share of the memory.
    Memory,
    /// The share of the time in which something waited for the CPU.
    CpuPressure,
    /// The share of the time in which something waited for memory.
    MemoryPressure,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::CpuPressure, Self::MemoryPressure];
}

/// From where on a signal is at which level; a level that is not given is never reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// From here on the lowest class is refused.
    pub warning: Option<Ratio>,
    /// From here on the lower two are.
    pub critical: Option<Ratio>,
}

/// What is watched, and from where on it matters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProtectionConfig {
    /// Of the CPU.
    pub cpu: Option<Levels>,
    /// Of the memory.
    pub memory: Option<Levels>,
    /// Of waiting for the CPU.
    pub cpu_pressure: Option<Levels>,
    /// Of waiting for memory.
    pub memory_pressure: Option<Levels>,
}

impl ProtectionConfig {
    /// The levels of a signal, if it is watched.
    #[must_use]
    pub fn levels(&self, signal: Signal) -> Option<Levels> {
        match signal {
            Signal::Cpu => self.cpu,
            Signal::Memory => self.memory,
            Signal::CpuPressure => self.cpu_pressure,
            Signal::MemoryPressure => self.memory_pressure,
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Not at all.
    #[default]
    Calm,
    /// It will be.
    Warning,
    /// It is.
    Critical,
}

/// How much a request matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Refused last.
    Critical,
    /// Refused before that.
    High,
    /// What most are, and what says nothing is.
    Normal,
    /// Refused first.
    Low,
}

impl Class {
    /// Highest first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Whether it is refused at a level.
    #[must_use]
    pub fn is_refused_at(self, level: Level) -> bool {
        match level {
            Level::Calm => false,
            Level::Warning => self >= Self::Low,
            Level::Critical => self >= Self::Normal,
        }
    }

    /// How much of a limit of so many places it may fill: 100, 90, 75 or 60 %, and at least one place.
    #[must_use]
    pub fn places_of(self, limit: NonZeroU32) -> NonZeroU32 {
        let percent = match self {
            Self::Critical => 100,
            Self::High => 90,
            Self::Normal => 75,
            Self::Low => 60,
        };
        let places = u64::from(limit.get()) * percent / 100;
        u32::try_from(places).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
    }
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a change is told"]
pub struct Change {
    /// Of this signal.
    pub signal: Signal,
    /// It was at this level.
    pub from: Level,
    /// It is at this one.
    pub to: Level,
    /// It says this right now.
    pub value: f64,
}

/// What the signals of an instance say.
#[derive(Debug, Clone)]
pub struct Protection {
    config: ProtectionConfig,
    watched: [Watched; 4],
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    warning: Latch,
    critical: Latch,
    value: Option<f64>,
}

impl Watched {
    fn level(&self) -> Level {
        match (self.critical.is_on, self.warning.is_on) {
            (true, _) => Level::Critical,
            (false, true) => Level::Warning,
            (false, false) => Level::Calm,
        }
    }
}

/// On after long enough at or above a bound, off after long enough well below it.
#[derive(Debug, Clone, Copy, Default)]
struct Latch {
    is_on: bool,
    /// Since when the other way would be right.
    since: Option<Instant>,
}

impl Latch {
    fn note(&mut self, value: f64, bound: Option<Ratio>, now: Instant) {
        let Some(bound) = bound.map(Ratio::value) else {
            *self = Self::default();
            return;
        };
        let (is_other, long) = if self.is_on { (value < bound * BELOW, FALL) } else { (value >= bound, RISE) };
        if !is_other {
            self.since = None;
        } else if now.saturating_duration_since(*self.since.get_or_insert(now)) >= long {
            *self = Self { is_on: !self.is_on, since: None };
        }
    }
}

impl Protection {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: ProtectionConfig) -> Self {
        Self { config, watched: [Watched::default(); 4] }
    }

    /// Follows other bounds; what is at a level stays there until it is well below.
    pub fn reconfigure(&mut self, config: ProtectionConfig) {
        self.config = config;
        for signal in Signal::ALL {
            if config.levels(signal).is_none() {
                self.watched[signal as usize] = Watched::default();
            }
        }
    }

    /// Takes note of what a signal says.
    pub fn note(&mut self, signal: Signal, value: f64, now: Instant) -> Option<Change> {
        let levels = self.config.levels(signal)?;
        let watched = &mut self.watched[signal as usize];
        let from = watched.level();
        watched.value = Some(value);
        watched.warning.note(value, levels.warning, now);
        watched.critical.note(value, levels.critical, now);
        let to = watched.level();
        (from != to).then_some(Change { signal, from, to, value })
    }

    /// The level of the instance.
    #[must_use]
    pub fn level(&self) -> Level {
        self.watched.iter().map(Watched::level).max().unwrap_or_default()
    }

    /// What a signal said last, and the level that it is at; nothing of one that is not watched or says nothing.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> Option<(f64, Level)> {
        let watched = &self.watched[signal as usize];
        watched.value.map(|value| (value, watched.level()))
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &ProtectionConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    fn percent(percent: f64) -> Option<Ratio> {
        Some(Ratio::from_percent(percent).expect("a percentage"))
    }

    fn protection() -> Protection {
        Protection::new(ProtectionConfig { cpu: Some(Levels { warning: percent(70.0), critical: percent(90.0) }), ..ProtectionConfig::default() })
    }

    /// Says the value each second, from one second to before another; the changes with their seconds.
    fn say(protection: &mut Protection, value: f64, seconds: std::ops::Range<u64>, start: Instant) -> Vec<(u64, Level)> {
        seconds.filter_map(|second| protection.note(Signal::Cpu, value, start + Duration::from_secs(second)).map(|change| (second, change.to))).collect()
    }

    #[test]
    fn a_level_is_reached_after_ten_seconds_and_left_after_thirty_well_below() {
        let (mut protection, start) = (protection(), some_instant());
        assert_eq!(say(&mut protection, 0.70, 0..20, start), [(10, Level::Warning)], "the bound itself counts");
        assert_eq!(say(&mut protection, 0.64, 20..100, start), [], "below, and not well below");
        assert_eq!(say(&mut protection, 0.62, 100..140, start), [(130, Level::Calm)]);
    }

    #[test]
    fn a_peak_and_a_dip_change_nothing() {
        let (mut protection, start) = (protection(), some_instant());
        for round in 0..10 {
            assert_eq!(say(&mut protection, 1.0, round * 20..round * 20 + 10, start), []);
            assert_eq!(say(&mut protection, 0.1, round * 20 + 10..round * 20 + 20, start), []);
        }
        assert_eq!(say(&mut protection, 0.95, 200..220, start), [(210, Level::Critical)], "both at once: the higher one");
        assert_eq!(say(&mut protection, 0.1, 220..245, start), []);
        assert_eq!(say(&mut protection, 0.95, 245..250, start), []);
        assert_eq!(say(&mut protection, 0.1, 250..300, start), [(280, Level::Calm)]);
    }

    #[test]
    fn levels_are_left_one_after_the_other() {
        let (mut protection, start) = (protection(), some_instant());
        assert_eq!(say(&mut protection, 0.92, 0..11, start), [(10, Level::Critical)]);
        assert_eq!(say(&mut protection, 0.75, 11..60, start), [(41, Level::Warning)], "below nine tenths of the one, above the other");
        assert_eq!(protection.level(), Level::Warning);
    }

    #[test]
    fn what_is_not_watched_says_nothing_and_what_is_no_longer_watched_holds_nothing() {
        let (mut protection, start) = (protection(), some_instant());
        assert_eq!(protection.note(Signal::Memory, 1.0, start), None);
        assert_eq!(protection.signal(Signal::Memory), None);
        assert_eq!(say(&mut protection, 0.95, 0..11, start), [(10, Level::Critical)]);
        protection.reconfigure(ProtectionConfig::default());
        assert_eq!(protection.level(), Level::Calm);
    }

    #[test]
    fn the_lowest_are_refused_first_and_the_two_highest_by_no_signal() {
        let refused = |level| Class::ALL.map(|class| class.is_refused_at(level));
        assert_eq!(refused(Level::Calm), [false; 4]);
        assert_eq!(refused(Level::Warning), [false, false, false, true]);
        assert_eq!(refused(Level::Critical), [false, false, true, true]);
    }

    #[test]
    fn each_class_fills_a_limit_only_so_far() {
        for (limit, expected) in [(100, [100, 90, 75, 60]), (10, [10, 9, 7, 6]), (1, [1, 1, 1, 1]), (u32::MAX, [u32::MAX, 3_865_470_565, 3_221_225_471, 2_576_980_377])] {
            let limit = NonZeroU32::new(limit).expect("not zero");
            assert_eq!(Class::ALL.map(|class| class.places_of(limit).get()), expected);
        }
    }
}

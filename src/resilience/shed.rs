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
//! | critical | | | a share | refused |
//!
//! Most requests are of the class normal. To refuse all of them at once would empty the instance and bring them all back when it is calm again; so a
//! share of them is refused, which rises by a tenth each second while a signal is at its critical level, and falls by half of that while none is.
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

/// How much more of the class normal is refused after a second that was no better.
const RISING: f64 = 0.1;

/// How much less after one that was.
const FALLING: f64 = 0.05;

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
    /// From here on a share of the one above it, too.
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

    /// Whether a request of it is refused at a level, with the share of the class normal; `random` is uniform in `0..1`.
    #[must_use]
    pub fn is_refused_at(self, level: Level, share: f64, random: f64) -> bool {
        match (self, level) {
            (_, Level::Calm) | (Self::Critical | Self::High, _) | (Self::Normal, Level::Warning) => false,
            (Self::Normal, Level::Critical) => random < share,
            (Self::Low, _) => true,
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
    /// It says this right now; nothing any more.
    pub value: Option<f64>,
}

/// What the signals of an instance say.
#[derive(Debug, Clone)]
pub struct Protection {
    config: ProtectionConfig,
    watched: [Watched; 4],
    /// The share of the class normal that is refused at the level critical.
    share: f64,
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
        Self { config, watched: [Watched::default(); 4], share: 0.0 }
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
        (from != to).then_some(Change { signal, from, to, value: Some(value) })
    }

    /// Takes note that a signal says nothing any more: it is at no level then.
    pub fn silence(&mut self, signal: Signal) -> Option<Change> {
        let from = std::mem::take(&mut self.watched[signal as usize]).level();
        (from != Level::Calm).then_some(Change { signal, from, to: Level::Calm, value: None })
    }

    /// Takes note that a second has passed.
    pub fn advance(&mut self) {
        let bound = |signal: Signal| self.config.levels(signal).and_then(|levels| levels.critical);
        let is_hot = Signal::ALL.into_iter().any(|signal| self.watched[signal as usize].value.zip(bound(signal)).is_some_and(|(value, bound)| value >= bound.value()));
        self.share = match self.level() {
            Level::Calm | Level::Warning => 0.0,
            Level::Critical if is_hot => (self.share + RISING).min(1.0),
            Level::Critical => (self.share - FALLING).max(RISING),
        };
    }

    /// The share of the class normal that is refused now.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// The signal for which the instance is at its level, if it is at one.
    #[must_use]
    pub fn cause(&self) -> Option<Signal> {
        let level = self.level();
        Signal::ALL.into_iter().find(|signal| level > Level::Calm && self.watched[*signal as usize].level() == level)
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
        let refused = |level, random| Class::ALL.map(|class| class.is_refused_at(level, 0.3, random));
        assert_eq!(refused(Level::Calm, 0.0), [false; 4]);
        assert_eq!(refused(Level::Warning, 0.0), [false, false, false, true]);
        assert_eq!(refused(Level::Critical, 0.29), [false, false, true, true]);
        assert_eq!(refused(Level::Critical, 0.3), [false, false, false, true]);
    }

    #[test]
    fn the_share_rises_while_it_is_bad_and_falls_at_half_the_pace() {
        let (mut protection, start) = (protection(), some_instant());
        assert_eq!(percent_after(&mut protection), 0);
        assert_eq!(say(&mut protection, 0.95, 0..11, start), [(10, Level::Critical)]);
        let shares: Vec<i64> = (0..12).map(|_| percent_after(&mut protection)).collect();
        assert_eq!(shares, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
        assert_eq!(say(&mut protection, 0.85, 11..12, start), [], "not well below, and no longer at it");
        assert_eq!([percent_after(&mut protection), percent_after(&mut protection)], [95, 90]);
        (0..100).for_each(|_| protection.advance());
        assert_eq!(percent_after(&mut protection), 10, "not below the first step before the level is left");
        assert_eq!(say(&mut protection, 0.1, 12..50, start).last(), Some(&(42, Level::Calm)));
        assert_eq!(percent_after(&mut protection), 0);
    }

    fn percent_after(protection: &mut Protection) -> i64 {
        protection.advance();
        #[expect(clippy::cast_possible_truncation, reason = "a percentage")]
        let percent = (protection.share() * 100.0).round() as i64;
        percent
    }

    #[test]
    fn a_signal_that_falls_silent_holds_nothing() {
        let (mut protection, start) = (protection(), some_instant());
        assert_eq!(protection.silence(Signal::Cpu), None);
        assert_eq!(say(&mut protection, 0.95, 0..11, start), [(10, Level::Critical)]);
        assert_eq!(protection.cause(), Some(Signal::Cpu));
        assert_eq!(protection.silence(Signal::Cpu).map(|change| (change.from, change.to, change.value)), Some((Level::Critical, Level::Calm, None)));
        assert_eq!((protection.level(), protection.cause()), (Level::Calm, None));
    }

    /// Against the rule as it is said: on after so long at or above, off after so long well below, and nothing else changes it.
    #[test]
    fn a_level_is_what_a_list_of_all_that_was_said_makes_it() {
        let mut seed = 7_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % 100
        };
        for _ in 0..50 {
            let (mut protection, start) = (protection(), some_instant());
            let (mut said, mut is_on, mut since): (Vec<f64>, bool, usize) = (Vec::new(), false, 0);
            for second in 0..400_usize {
                // Long stretches of one value, so that levels are reached and left.
                let value = if second > 0 && next() < 93 { said[second - 1] } else { [0.1, 0.62, 0.64, 0.7, 0.8][usize::try_from(next() % 5).expect("small")] };
                said.push(value);
                _ = protection.note(Signal::Cpu, value, start + Duration::from_secs(second as u64));
                let long: usize = if is_on { 30 } else { 10 };
                let is_other = |value: f64| if is_on { value < 0.63 } else { value >= 0.7 };
                if second >= since + long && said[second - long..=second].iter().all(|value| is_other(*value)) {
                    (is_on, since) = (!is_on, second + 1);
                }
                assert_eq!(protection.level() == Level::Warning, is_on, "second {second}: {:?}", &said[second.saturating_sub(31)..]);
            }
        }
    }

    #[test]
    fn each_class_fills_a_limit_only_so_far() {
        for (limit, expected) in [(100, [100, 90, 75, 60]), (10, [10, 9, 7, 6]), (1, [1, 1, 1, 1]), (u32::MAX, [u32::MAX, 3_865_470_565, 3_221_225_471, 2_576_980_377])] {
            let limit = NonZeroU32::new(limit).expect("not zero");
            assert_eq!(Class::ALL.map(|class| class.places_of(limit).get()), expected);
        }
    }
}

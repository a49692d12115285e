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
    pub const ALL: [Self; 4] = [
        Self::Cpu,
        Self::Memory,
        Self::CpuPressure,
        Self::MemoryPressure,
    ];
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
            (_, Level::Calm)
            | (Self::Critical | Self::High, _)
            | (Self::Normal, Level::Warning) => false,
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
        u32::try_from(places)
            .ok()
            .and_then(NonZeroU32::new)
            .unwrap_or(NonZeroU32::MIN)
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
        let (is_other, long) = if self.is_on {
            (value < bound * BELOW, FALL)
        } else {
            (value >= bound, RISE)
        };
        if !is_other {
            self.since = None;
        } else if now.saturating_duration_since(*self.since.get_or_insert(now)) >= long {
            *self = Self {
                is_on: !self.is_on,
                since: None,
            };
        }
    }
}

impl Protection {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: ProtectionConfig) -> Self {
        Self {
            config,
            watched: [Watched::default(); 4],
            share: 0.0,
        }
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
        (from != to).then_some(Change {
            signal,
            from,
            to,
            value: Some(value),
        })
    }

    /// Takes note that a signal says nothing any more: it is at no level then.
    pub fn silence(&mut self, signal: Signal) -> Option<Change> {
        let from = std::mem::take(&mut self.watched[signal as usize]).level();
        (from != Level::Calm).then_some(Change {
            signal,
            from,
            to: Level::Calm,
            value: None,
        })
    }

    /// Takes note that a second has passed.
    pub fn advance(&mut self) {
        let bound = |signal: Signal| {
            self.config
                .levels(signal)
                .and_then(|levels| levels.critical)
        };
        let is_hot = Signal::ALL.into_iter().any(|signal| {
            self.watched[signal as usize]
                .value
                .zip(bound(signal))
                .is_some_and(|(value, bound)| value >= bound.value())
        });
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
        Signal::ALL
            .into_iter()
            .find(|signal| level > Level::Calm && self.watched[*signal as usize].level() == level)
    }

    /// The level of the instance.
    #[must_use]
    pub fn level(&self) -> Level {
        self.watched
            .iter()
            .map(Watched::level)
            .max()
            .unwrap_or_default()
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
mod tests;

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

use crate::resilience::ratio::Ratio;

/// How long a signal is at a level before it counts.
const RAISE_AFTER: Duration = Duration::from_secs(10);

/// How long it is below before it counts no more.
const CLEAR_AFTER: Duration = Duration::from_secs(30);

/// How much more of the class normal is refused after a second that was no better.
const SHED_RATIO_INCREASE: f64 = 0.1;

/// How much less after one that was.
const SHED_RATIO_DECREASE: f64 = 0.05;

/// How far it has to be below.
const CLEAR_FACTOR: f64 = 0.9;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverloadSignal {
    /// The share of the CPU that is used of what may be.
    Cpu,
    /// The share of the memory.
    Memory,
    /// The share of the time in which something waited for the CPU.
    CpuPressure,
    /// The share of the time in which something waited for memory.
    MemoryPressure,
}

impl OverloadSignal {
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
pub struct SignalThresholds {
    /// From here on the lowest class is refused.
    pub warning: Option<Ratio>,
    /// From here on a share of the one above it, too.
    pub critical: Option<Ratio>,
}

/// What is watched, and from where on it matters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProtectionConfig {
    /// Of the CPU.
    pub cpu: Option<SignalThresholds>,
    /// Of the memory.
    pub memory: Option<SignalThresholds>,
    /// Of waiting for the CPU.
    pub cpu_pressure: Option<SignalThresholds>,
    /// Of waiting for memory.
    pub memory_pressure: Option<SignalThresholds>,
}

impl ProtectionConfig {
    /// The levels of a signal, if it is watched.
    #[must_use]
    pub fn thresholds(&self, signal: OverloadSignal) -> Option<SignalThresholds> {
        match signal {
            OverloadSignal::Cpu => self.cpu,
            OverloadSignal::Memory => self.memory,
            OverloadSignal::CpuPressure => self.cpu_pressure,
            OverloadSignal::MemoryPressure => self.memory_pressure,
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum OverloadLevel {
    /// Not at all.
    #[default]
    Normal,
    /// It will be.
    Warning,
    /// It is.
    Critical,
}

/// How much a request matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PriorityClass {
    /// Refused last.
    Critical,
    /// Refused before that.
    High,
    /// What most are, and what says nothing is.
    Normal,
    /// Refused first.
    Low,
}

impl PriorityClass {
    /// Highest first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Whether a request of it is refused at a level, with the share of the class normal; `random` is uniform in `0..1`.
    #[must_use]
    pub fn is_shed_at(self, level: OverloadLevel, shed_ratio: f64, random: f64) -> bool {
        match (self, level) {
            (_, OverloadLevel::Normal)
            | (Self::Critical | Self::High, _)
            | (Self::Normal, OverloadLevel::Warning) => false,
            (Self::Normal, OverloadLevel::Critical) => random < shed_ratio,
            (Self::Low, _) => true,
        }
    }

    /// How much of a limit of so many places it may fill: 100, 90, 75 or 60 %, and at least one place.
    #[must_use]
    pub fn max_permits(self, limit: NonZeroU32) -> NonZeroU32 {
        let percent = match self {
            Self::Critical => 100,
            Self::High => 90,
            Self::Normal => 75,
            Self::Low => 60,
        };
        let permits = u64::from(limit.get()) * percent / 100;
        u32::try_from(permits)
            .ok()
            .and_then(NonZeroU32::new)
            .unwrap_or(NonZeroU32::MIN)
    }
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a change is told"]
pub struct OverloadLevelChange {
    /// Of this signal.
    pub signal: OverloadSignal,
    /// It was at this level.
    pub from: OverloadLevel,
    /// It is at this one.
    pub to: OverloadLevel,
    /// It says this right now; nothing any more.
    pub value: Option<f64>,
}

/// What the signals of an instance say.
#[derive(Debug, Clone)]
pub struct OverloadProtection {
    config: ProtectionConfig,
    signals: [SignalState; 4],
    /// The share of the class normal that is refused at the level critical.
    shed_ratio: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct SignalState {
    warning: HysteresisLatch,
    critical: HysteresisLatch,
    value: Option<f64>,
}

impl SignalState {
    fn level(&self) -> OverloadLevel {
        match (self.critical.is_on, self.warning.is_on) {
            (true, _) => OverloadLevel::Critical,
            (false, true) => OverloadLevel::Warning,
            (false, false) => OverloadLevel::Normal,
        }
    }
}

/// On after long enough at or above a bound, off after long enough well below it.
#[derive(Debug, Clone, Copy, Default)]
struct HysteresisLatch {
    is_on: bool,
    /// Since when the other way would be right.
    pending_since: Option<Instant>,
}

impl HysteresisLatch {
    fn update(&mut self, value: f64, threshold: Option<Ratio>, now: Instant) {
        let Some(threshold) = threshold.map(Ratio::value) else {
            *self = Self::default();
            return;
        };
        let (is_past_threshold, required) = if self.is_on {
            (value < threshold * CLEAR_FACTOR, CLEAR_AFTER)
        } else {
            (value >= threshold, RAISE_AFTER)
        };
        if !is_past_threshold {
            self.pending_since = None;
        } else if now.saturating_duration_since(*self.pending_since.get_or_insert(now)) >= required
        {
            *self = Self {
                is_on: !self.is_on,
                pending_since: None,
            };
        }
    }
}

impl OverloadProtection {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: ProtectionConfig) -> Self {
        Self {
            config,
            signals: [SignalState::default(); 4],
            shed_ratio: 0.0,
        }
    }

    /// Follows other bounds; what is at a level stays there until it is well below.
    pub fn reconfigure(&mut self, config: ProtectionConfig) {
        self.config = config;
        for signal in OverloadSignal::ALL {
            if config.thresholds(signal).is_none() {
                self.signals[signal as usize] = SignalState::default();
            }
        }
    }

    /// Takes note of what a signal says.
    pub fn record_signal(
        &mut self,
        signal: OverloadSignal,
        value: f64,
        now: Instant,
    ) -> Option<OverloadLevelChange> {
        let levels = self.config.thresholds(signal)?;
        let state = &mut self.signals[signal as usize];
        let from = state.level();
        state.value = Some(value);
        state.warning.update(value, levels.warning, now);
        state.critical.update(value, levels.critical, now);
        let to = state.level();
        (from != to).then_some(OverloadLevelChange {
            signal,
            from,
            to,
            value: Some(value),
        })
    }

    /// Takes note that a signal says nothing any more: it is at no level then.
    pub fn clear_signal(&mut self, signal: OverloadSignal) -> Option<OverloadLevelChange> {
        let from = std::mem::take(&mut self.signals[signal as usize]).level();
        (from != OverloadLevel::Normal).then_some(OverloadLevelChange {
            signal,
            from,
            to: OverloadLevel::Normal,
            value: None,
        })
    }

    /// Takes note that a second has passed.
    pub fn advance_one_second(&mut self) {
        let threshold = |signal: OverloadSignal| {
            self.config
                .thresholds(signal)
                .and_then(|levels| levels.critical)
        };
        let is_any_signal_critical = OverloadSignal::ALL.into_iter().any(|signal| {
            self.signals[signal as usize]
                .value
                .zip(threshold(signal))
                .is_some_and(|(value, threshold)| value >= threshold.value())
        });
        self.shed_ratio = match self.level() {
            OverloadLevel::Normal | OverloadLevel::Warning => 0.0,
            OverloadLevel::Critical if is_any_signal_critical => {
                (self.shed_ratio + SHED_RATIO_INCREASE).min(1.0)
            }
            OverloadLevel::Critical => {
                (self.shed_ratio - SHED_RATIO_DECREASE).max(SHED_RATIO_INCREASE)
            }
        };
    }

    /// The share of the class normal that is refused now.
    #[must_use]
    pub fn shed_ratio(&self) -> f64 {
        self.shed_ratio
    }

    /// The signal for which the instance is at its level, if it is at one.
    #[must_use]
    pub fn cause(&self) -> Option<OverloadSignal> {
        let level = self.level();
        OverloadSignal::ALL.into_iter().find(|signal| {
            level > OverloadLevel::Normal && self.signals[*signal as usize].level() == level
        })
    }

    /// The level of the instance.
    #[must_use]
    pub fn level(&self) -> OverloadLevel {
        self.signals
            .iter()
            .map(SignalState::level)
            .max()
            .unwrap_or_default()
    }

    /// What a signal said last, and the level that it is at; nothing of one that is not watched or says nothing.
    #[must_use]
    pub fn last_reading(&self, signal: OverloadSignal) -> Option<(f64, OverloadLevel)> {
        let state = &self.signals[signal as usize];
        state.value.map(|value| (value, state.level()))
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &ProtectionConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;

//! Load shedding while the instance is overloaded.
//!
//! This module decides two things: the overload level of the instance, and which requests are
//! rejected at that level. It does not read the signals and does not reject requests itself.
//!
//! A signal, such as the CPU utilization, raises its level after some time at or above a
//! threshold. The level falls after a longer time well below that threshold. This hysteresis
//! prevents flapping. The instance is at the highest level of all its signals. At each level
//! the lowest priority classes are rejected first, so that the most important requests are
//! still served. This is the "criticality" of the SRE book, chapter "Handling Overload".
//!
//! | level | critical | high | normal | low |
//! | --- | --- | --- | --- | --- |
//! | normal | admitted | admitted | admitted | admitted |
//! | warning | admitted | admitted | admitted | rejected |
//! | critical | admitted | admitted | a share is rejected | rejected |
//!
//! Most requests are of class normal. Rejecting all of them at once would empty the instance,
//! and all of them would return when the level falls. A share of them is therefore rejected. It
//! rises by 10 percentage points per second while a signal is at or above its critical
//! threshold. It falls by 5 points per second otherwise.
//!
//! Concurrency limits use the same order: each class fills only a part of a limit, and the
//! highest class may use all of it.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::resilience::ratio::Ratio;

/// Time at or above a threshold after which a signal enters the level.
const RAISE_AFTER: Duration = Duration::from_secs(10);

/// Time below [`CLEAR_FACTOR`] times the threshold after which a signal leaves the level.
const CLEAR_AFTER: Duration = Duration::from_secs(30);

/// Increase of the shed ratio per second while a signal is at or above its critical threshold.
const SHED_RATIO_INCREASE: f64 = 0.1;

/// Decrease of the shed ratio per second while no signal is at its critical threshold.
const SHED_RATIO_DECREASE: f64 = 0.05;

/// Multiple of the threshold below which a signal starts to leave the level.
const CLEAR_FACTOR: f64 = 0.9;

/// Resource signal that indicates an overload of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverloadSignal {
    /// Utilization of the CPU, as a share of the CPU that the instance may use.
    Cpu,
    /// Memory in use, as a share of the memory limit.
    Memory,
    /// Share of time in which some task waited for the CPU.
    CpuPressure,
    /// Share of time in which some task waited for memory.
    MemoryPressure,
}

impl OverloadSignal {
    /// All signals, in the order of declaration.
    pub const ALL: [Self; 4] = [
        Self::Cpu,
        Self::Memory,
        Self::CpuPressure,
        Self::MemoryPressure,
    ];
}

/// Thresholds of one signal; a signal never enters a level without a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignalThresholds {
    /// Value from which class low is rejected.
    pub warning: Option<Ratio>,
    /// Value from which a share of class normal is rejected as well.
    pub critical: Option<Ratio>,
}

/// Thresholds of all signals; a signal without thresholds is not evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProtectionConfig {
    /// Thresholds for the utilization of the CPU.
    pub cpu: Option<SignalThresholds>,
    /// Thresholds for the share of memory in use.
    pub memory: Option<SignalThresholds>,
    /// Thresholds for the share of time spent waiting for the CPU.
    pub cpu_pressure: Option<SignalThresholds>,
    /// Thresholds for the share of time spent waiting for memory.
    pub memory_pressure: Option<SignalThresholds>,
}

impl ProtectionConfig {
    /// Returns the thresholds of a signal, or `None` if it is not evaluated.
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

/// Overload level of a signal or of the instance, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum OverloadLevel {
    /// No overload: every request is admitted.
    #[default]
    Normal,
    /// Overload is near: class low is rejected.
    Warning,
    /// Overload: class low and a share of class normal are rejected.
    Critical,
}

/// Priority class of a request, from the most to the least important.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PriorityClass {
    /// Never rejected because of an overload level, and may use a whole concurrency limit.
    Critical,
    /// Never rejected because of an overload level, but may use only 90 % of a concurrency
    /// limit.
    High,
    /// The default class; a share of it is rejected at the critical level.
    Normal,
    /// Rejected from the warning level on.
    Low,
}

impl PriorityClass {
    /// All classes, the most important one first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Returns whether a request of this class is rejected at a level.
    ///
    /// `shed_ratio` is the share of class normal to reject at the critical level. `random` is
    /// uniform in `0..1`.
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

    /// Returns how many of `limit` permits this class may use: 100, 90, 75 or 60 %, and at
    /// least one.
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

/// A change of the overload level of one signal.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a change must be reported"]
pub struct OverloadLevelChange {
    /// Signal whose level changed.
    pub signal: OverloadSignal,
    /// Level before the change.
    pub from: OverloadLevel,
    /// Level after the change.
    pub to: OverloadLevel,
    /// Reading that caused the change, or `None` if the signal has no reading any more.
    pub value: Option<f64>,
}

/// Overload level of an instance, derived from the readings of its signals.
#[derive(Debug, Clone)]
pub struct OverloadProtection {
    config: ProtectionConfig,
    signals: [SignalState; 4],
    /// Share of class normal that is rejected at the critical level, in `0.0..=1.0`.
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

/// A switch that turns on after [`RAISE_AFTER`] at or above a threshold. It turns off after
/// [`CLEAR_AFTER`] below [`CLEAR_FACTOR`] times the threshold.
#[derive(Debug, Clone, Copy, Default)]
struct HysteresisLatch {
    is_on: bool,
    /// Time since which every reading supports the opposite position.
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
    /// Creates a state without readings, at the normal level.
    #[must_use]
    pub fn new(config: ProtectionConfig) -> Self {
        Self {
            config,
            signals: [SignalState::default(); 4],
            shed_ratio: 0.0,
        }
    }

    /// Applies new thresholds of the overload levels.
    ///
    /// A signal keeps its level until its readings are well below the new threshold. A signal
    /// without thresholds returns to the normal level.
    pub fn reconfigure(&mut self, config: ProtectionConfig) {
        self.config = config;
        for signal in OverloadSignal::ALL {
            if config.thresholds(signal).is_none() {
                self.signals[signal as usize] = SignalState::default();
            }
        }
    }

    /// Records a reading of a signal and returns the change of its level, if there is one.
    ///
    /// A reading of a signal without thresholds is ignored.
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

    /// Discards the reading of a signal, which returns to the normal level.
    ///
    /// Returns the change of its level, if there is one.
    pub fn clear_signal(&mut self, signal: OverloadSignal) -> Option<OverloadLevelChange> {
        let from = std::mem::take(&mut self.signals[signal as usize]).level();
        (from != OverloadLevel::Normal).then_some(OverloadLevelChange {
            signal,
            from,
            to: OverloadLevel::Normal,
            value: None,
        })
    }

    /// Updates the shed ratio; the caller calls this once per second.
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

    /// Returns the share of class normal that is rejected now, in `0.0..=1.0`.
    #[must_use]
    pub fn shed_ratio(&self) -> f64 {
        self.shed_ratio
    }

    /// Returns the first signal at the level of the instance, or `None` at the normal level.
    #[must_use]
    pub fn cause(&self) -> Option<OverloadSignal> {
        let level = self.level();
        OverloadSignal::ALL.into_iter().find(|signal| {
            level > OverloadLevel::Normal && self.signals[*signal as usize].level() == level
        })
    }

    /// Returns the overload level of the instance, which is the highest level of its signals.
    #[must_use]
    pub fn level(&self) -> OverloadLevel {
        self.signals
            .iter()
            .map(SignalState::level)
            .max()
            .unwrap_or_default()
    }

    /// Returns the latest reading of a signal and its level, or `None` without a reading.
    #[must_use]
    pub fn last_reading(&self, signal: OverloadSignal) -> Option<(f64, OverloadLevel)> {
        let state = &self.signals[signal as usize];
        state.value.map(|value| (value, state.level()))
    }

    /// Returns the thresholds that the state currently follows.
    #[must_use]
    pub fn config(&self) -> &ProtectionConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;

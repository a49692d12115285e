//! Overload level of the instance, which each request reads without a lock.
//!
//! The pure [`OverloadProtection`] decides the level. This module passes the readings of the
//! resource signals to it, and publishes the result as atomic numbers. It does not measure
//! resources and does not reject requests.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use crate::resilience::shed::{
    OverloadLevel, OverloadLevelChange, OverloadProtection, OverloadSignal, PriorityClass,
    ProtectionConfig,
};

/// Number of steps of the published shed ratio between 0 and 1.
const PERMILLE: f64 = 1_000.0;

/// Overload protection of the instance, shared by all requests.
#[derive(Debug)]
pub struct ProtectionState {
    /// Published [`OverloadLevel`] as a number, readable without a lock.
    level: AtomicU8,
    /// Published shed ratio in thousandths, readable without a lock.
    shed_permille: AtomicU32,
    /// Published index of the cause in [`OverloadSignal::ALL`], or `u8::MAX` for no cause.
    cause: AtomicU8,
    /// State machine of the protection; the lock covers one call.
    machine: Mutex<OverloadProtection>,
}

impl Default for ProtectionState {
    fn default() -> Self {
        let machine = Mutex::new(OverloadProtection::new(ProtectionConfig::default()));
        Self {
            level: AtomicU8::new(0),
            shed_permille: AtomicU32::new(0),
            cause: AtomicU8::new(u8::MAX),
            machine,
        }
    }
}

impl ProtectionState {
    /// Returns the current overload level of the instance.
    #[must_use]
    pub fn level(&self) -> OverloadLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => OverloadLevel::Normal,
            1 => OverloadLevel::Warning,
            _ => OverloadLevel::Critical,
        }
    }

    /// Returns whether a request of a priority class is rejected now.
    ///
    /// `random` returns a number in `0..1`. It is called only above the normal level.
    #[must_use]
    pub fn should_shed(&self, class: PriorityClass, random: impl FnOnce() -> f64) -> bool {
        let level = self.level();
        level != OverloadLevel::Normal
            && class.is_shed_at(
                level,
                f64::from(self.shed_permille.load(Ordering::Relaxed)) / PERMILLE,
                random(),
            )
    }

    /// Returns the signal that causes the current level; `None` at the normal level.
    #[must_use]
    pub fn cause(&self) -> Option<OverloadSignal> {
        OverloadSignal::ALL
            .get(usize::from(self.cause.load(Ordering::Relaxed)))
            .copied()
    }

    /// Applies new thresholds, if they differ from the current ones.
    pub fn reconfigure(&self, config: ProtectionConfig) {
        let mut machine = self.lock();
        if *machine.config() != config {
            machine.reconfigure(config);
            self.publish(&machine);
        }
    }

    /// Records the reading of a signal, and returns the change of its level, if any. The value
    /// `None` means that the signal has no reading.
    #[must_use]
    pub fn record_signal(
        &self,
        signal: OverloadSignal,
        value: Option<f64>,
        now: Instant,
    ) -> Option<OverloadLevelChange> {
        let mut machine = self.lock();
        let change = match value {
            Some(value) => machine.record_signal(signal, value, now),
            None => machine.clear_signal(signal),
        };
        self.publish(&machine);
        change
    }

    /// Advances the shed ratio by one second.
    pub fn advance_one_second(&self) {
        let mut machine = self.lock();
        machine.advance_one_second();
        self.publish(&machine);
    }

    /// Returns the share of class normal to reject at the critical level, in `0.0..=1.0`.
    #[must_use]
    pub fn shed_ratio(&self) -> f64 {
        self.lock().shed_ratio()
    }

    /// Returns each signal that has a reading, with its latest value and its level.
    #[must_use]
    pub fn signal_readings(&self) -> Vec<(OverloadSignal, f64, OverloadLevel)> {
        let machine = self.lock();
        OverloadSignal::ALL
            .into_iter()
            .filter_map(|signal| {
                machine
                    .last_reading(signal)
                    .map(|(value, level)| (signal, value, level))
            })
            .collect()
    }

    fn publish(&self, machine: &OverloadProtection) {
        self.level.store(machine.level() as u8, Ordering::Relaxed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a thousand"
        )]
        self.shed_permille.store(
            (machine.shed_ratio() * PERMILLE).round() as u32,
            Ordering::Relaxed,
        );
        self.cause.store(
            machine.cause().map_or(u8::MAX, |signal| signal as u8),
            Ordering::Relaxed,
        );
    }

    fn lock(&self) -> MutexGuard<'_, OverloadProtection> {
        self.machine.lock()
    }
}

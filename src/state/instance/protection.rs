//! How short of resources the instance is, as every request may ask.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Instant,
};

use crate::resilience::shed::{
    OverloadLevel, OverloadLevelChange, OverloadProtection, OverloadSignal, PriorityClass,
    ProtectionConfig,
};

/// A share is kept as a number of these.
const PERMILLE: f64 = 1_000.0;

/// The protection of the instance.
#[derive(Debug)]
pub struct ProtectionState {
    /// The level of the machine, its share in thousandths, and the place of its cause among the signals, to be read without its lock.
    level: AtomicU8,
    shed_permille: AtomicU32,
    cause: AtomicU8,
    /// Guards one call of the machine.
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
    /// The level.
    #[must_use]
    pub fn level(&self) -> OverloadLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => OverloadLevel::Normal,
            1 => OverloadLevel::Warning,
            _ => OverloadLevel::Critical,
        }
    }

    /// Whether a request of a class is refused; `random` is asked for a number in `0..1` if it matters.
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

    /// The signal for which the instance is at its level.
    #[must_use]
    pub fn cause(&self) -> Option<OverloadSignal> {
        OverloadSignal::ALL
            .get(usize::from(self.cause.load(Ordering::Relaxed)))
            .copied()
    }

    /// Follows other bounds.
    pub fn reconfigure(&self, config: ProtectionConfig) {
        let mut machine = self.lock();
        if *machine.config() != config {
            machine.reconfigure(config);
            self.publish(&machine);
        }
    }

    /// Takes note of what a signal says, or that it says nothing; its change of level.
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

    /// Takes note that a second has passed.
    pub fn advance_one_second(&self) {
        let mut machine = self.lock();
        machine.advance_one_second();
        self.publish(&machine);
    }

    /// The share of the class normal that is refused.
    #[must_use]
    pub fn shed_ratio(&self) -> f64 {
        self.lock().shed_ratio()
    }

    /// What the signals that are watched said last, and their levels.
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
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

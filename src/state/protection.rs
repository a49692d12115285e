//! How short of resources the instance is, as every request may ask.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use crate::resilience::shed::{Change, Level, Protection, ProtectionConfig, Signal};

/// The protection of the instance.
#[derive(Debug)]
pub struct ProtectionState {
    /// The level of the machine, to be read without its lock.
    level: AtomicU8,
    /// Guards one call of the machine.
    machine: Mutex<Protection>,
}

impl Default for ProtectionState {
    fn default() -> Self {
        Self { level: AtomicU8::new(0), machine: Mutex::new(Protection::new(ProtectionConfig::default())) }
    }
}

impl ProtectionState {
    /// The level.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Calm,
            1 => Level::Warning,
            _ => Level::Critical,
        }
    }

    /// Follows other bounds.
    pub fn follow(&self, config: ProtectionConfig) {
        let mut machine = self.lock();
        if *machine.config() != config {
            machine.reconfigure(config);
            self.show(&machine);
        }
    }

    /// Takes note of what a signal says; its change of level.
    #[must_use]
    pub fn note(&self, signal: Signal, value: f64, now: Instant) -> Option<Change> {
        let mut machine = self.lock();
        let change = machine.note(signal, value, now);
        self.show(&machine);
        change
    }

    /// What the signals that are watched said last, and their levels.
    #[must_use]
    pub fn signals(&self) -> Vec<(Signal, f64, Level)> {
        let machine = self.lock();
        Signal::ALL.into_iter().filter_map(|signal| machine.signal(signal).map(|(value, level)| (signal, value, level))).collect()
    }

    /// The signal for which the instance is at its level.
    #[must_use]
    pub fn cause(&self) -> Option<Signal> {
        self.signals().into_iter().filter(|(_, _, level)| *level > Level::Calm).max_by_key(|(_, _, level)| *level).map(|(signal, _, _)| signal)
    }

    fn show(&self, machine: &Protection) {
        self.level.store(machine.level() as u8, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Protection> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

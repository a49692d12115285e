//! How short of resources the instance is, as every request may ask.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Instant,
};

use crate::resilience::shed::{Change, Class, Level, Protection, ProtectionConfig, Signal};

/// A share is kept as a number of these.
const PARTS: f64 = 1_000.0;

/// The protection of the instance.
#[derive(Debug)]
pub struct ProtectionState {
    /// The level of the machine, its share in thousandths, and the place of its cause among the signals, to be read without its lock.
    level: AtomicU8,
    share: AtomicU32,
    cause: AtomicU8,
    /// Guards one call of the machine.
    machine: Mutex<Protection>,
}

impl Default for ProtectionState {
    fn default() -> Self {
        let machine = Mutex::new(Protection::new(ProtectionConfig::default()));
        Self {
            level: AtomicU8::new(0),
            share: AtomicU32::new(0),
            cause: AtomicU8::new(u8::MAX),
            machine,
        }
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

    /// Whether a request of a class is refused; `random` is asked for a number in `0..1` if it matters.
    #[must_use]
    pub fn refuses(&self, class: Class, random: impl FnOnce() -> f64) -> bool {
        let level = self.level();
        level != Level::Calm
            && class.is_refused_at(
                level,
                f64::from(self.share.load(Ordering::Relaxed)) / PARTS,
                random(),
            )
    }

    /// The signal for which the instance is at its level.
    #[must_use]
    pub fn cause(&self) -> Option<Signal> {
        Signal::ALL
            .get(usize::from(self.cause.load(Ordering::Relaxed)))
            .copied()
    }

    /// Follows other bounds.
    pub fn follow(&self, config: ProtectionConfig) {
        let mut machine = self.lock();
        if *machine.config() != config {
            machine.reconfigure(config);
            self.show(&machine);
        }
    }

    /// Takes note of what a signal says, or that it says nothing; its change of level.
    #[must_use]
    pub fn note(&self, signal: Signal, value: Option<f64>, now: Instant) -> Option<Change> {
        let mut machine = self.lock();
        let change = match value {
            Some(value) => machine.note(signal, value, now),
            None => machine.silence(signal),
        };
        self.show(&machine);
        change
    }

    /// Takes note that a second has passed.
    pub fn advance(&self) {
        let mut machine = self.lock();
        machine.advance();
        self.show(&machine);
    }

    /// The share of the class normal that is refused.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.lock().share()
    }

    /// What the signals that are watched said last, and their levels.
    #[must_use]
    pub fn signals(&self) -> Vec<(Signal, f64, Level)> {
        let machine = self.lock();
        Signal::ALL
            .into_iter()
            .filter_map(|signal| {
                machine
                    .signal(signal)
                    .map(|(value, level)| (signal, value, level))
            })
            .collect()
    }

    fn show(&self, machine: &Protection) {
        self.level.store(machine.level() as u8, Ordering::Relaxed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a thousand"
        )]
        self.share
            .store((machine.share() * PARTS).round() as u32, Ordering::Relaxed);
        self.cause.store(
            machine.cause().map_or(u8::MAX, |signal| signal as u8),
            Ordering::Relaxed,
        );
    }

    fn lock(&self) -> MutexGuard<'_, Protection> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

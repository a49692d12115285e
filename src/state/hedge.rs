//! What a backend took lately, as those who hedge share it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::resilience::hedge::{Hedge, HedgeConfig};

/// The hedging towards a backend by its name.
#[derive(Debug)]
pub struct HedgeState {
    /// Guards one call of the machine.
    machine: Mutex<Hedge>,
}

impl HedgeState {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            machine: Mutex::new(Hedge::new(config, now)),
        }
    }

    /// Follows other numbers.
    pub fn reconfigure(&self, config: HedgeConfig) {
        self.lock().reconfigure(config);
    }

    /// Takes note of what an answer took.
    pub fn note(&self, took: Duration, now: Instant) {
        self.lock().note(took, now);
    }

    /// How long to wait before the next request, if that is known.
    #[must_use]
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        self.lock().delay(now)
    }

    fn lock(&self) -> MutexGuard<'_, Hedge> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

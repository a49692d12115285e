//! What a backend took lately, as those who hedge share it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::resilience::hedge::{HedgeConfig, HedgeDelayEstimator};

/// The hedging towards a backend by its name.
#[derive(Debug)]
pub struct HedgeState {
    /// Guards one call of the machine.
    machine: Mutex<HedgeDelayEstimator>,
}

impl HedgeState {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            machine: Mutex::new(HedgeDelayEstimator::new(config, now)),
        }
    }

    /// Follows other numbers.
    pub fn reconfigure(&self, config: HedgeConfig) {
        self.lock().reconfigure(config);
    }

    /// Takes note of what an answer took.
    pub fn record_latency(&self, latency: Duration, now: Instant) {
        self.lock().record_latency(latency, now);
    }

    /// How long to wait before the next request, if that is known.
    #[must_use]
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        self.lock().delay(now)
    }

    fn lock(&self) -> MutexGuard<'_, HedgeDelayEstimator> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

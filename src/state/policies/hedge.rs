//! Shared state of hedging: the recent latency of a backend.
//!
//! This module puts a lock around the pure [`HedgeDelayEstimator`]. It provides the delay
//! before a hedged request. It does not decide whether a request may be hedged.

use std::{
    sync::Arc,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    policy::snapshot::HedgingSpec,
    resilience::hedge::{HedgeConfig, HedgeDelayEstimator},
    state::table::{BuildContext, Reconfigure},
};

/// Hedging delay towards a backend, shared by all requests under one name.
#[derive(Debug)]
pub struct HedgeState {
    /// State machine of the estimate; the lock covers one call.
    machine: Mutex<HedgeDelayEstimator>,
}

impl HedgeState {
    /// Creates an estimate without recorded latencies.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            machine: Mutex::new(HedgeDelayEstimator::new(config, now)),
        }
    }

    /// Records the latency of a response. An attempt that lost a race counts with the time that
    /// it was waited for.
    pub fn record_latency(&self, latency: Duration, now: Instant) {
        self.lock().record_latency(latency, now);
    }

    /// Returns the delay before the next request, or `None` while it is unknown.
    ///
    /// It is the configured delay, or else the 95th percentile of at least 50 recent latencies.
    #[must_use]
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        self.lock().delay(now)
    }

    fn lock(&self) -> MutexGuard<'_, HedgeDelayEstimator> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconfigure for HedgeState {
    type Spec = HedgingSpec;

    fn create(_: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(spec.config, context.now)
    }

    /// Applies a new specification; recorded latencies are retained.
    fn reconfigure(&self, spec: &Self::Spec, _: BuildContext<'_>) -> Option<Self> {
        self.lock().reconfigure(spec.config);
        None
    }
}

//! Shared state of hedging: the recent latency of a backend.
//!
//! This module puts a lock around the pure [`HedgeDelayEstimator`]. It provides the delay
//! before a hedged request. It does not decide whether a request may be hedged.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::sections::{PolicySpec, hedging::HedgingSpec},
    resilience::{
        breaker::CallOutcome,
        hedge::{HedgeConfig, HedgeDelayEstimator},
    },
    state::{
        policies::destination_policy::{AttemptObserver, DestinationPolicyState},
        table::{BuildContext, Reconfigure},
    },
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
        self.machine.lock()
    }
}

impl DestinationPolicyState for HedgeState {
    fn select_spec(policy: &PolicySpec) -> Option<(&Arc<str>, &HedgingSpec)> {
        policy.hedging.as_ref().map(|spec| (&spec.name, spec))
    }

    fn into_observer(self: Arc<Self>) -> Option<Arc<dyn AttemptObserver>> {
        Some(self)
    }
}

impl AttemptObserver for HedgeState {
    /// Records the latency of a success. The latency of a failure does not predict a response.
    fn record_attempt_result(&self, outcome: CallOutcome, latency: Option<Duration>, now: Instant) {
        if let (CallOutcome::Success, Some(latency)) = (outcome, latency) {
            self.record_latency(latency, now);
        }
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

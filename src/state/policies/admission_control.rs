//! Shared state of admission control.
//!
//! This module puts a lock around the pure [`AdmissionController`] and applies the mode. It
//! decides whether a request is sent to the backend. It does not know the request, its route or
//! its endpoint.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::sections::{PolicySpec, admission_control::AdmissionControlSpec},
    resilience::{
        Mode,
        admission::{AdmissionConfig, AdmissionController, AdmissionCounts},
        breaker::CallOutcome,
        ratio::Ratio,
    },
    state::{
        policies::destination_policy::{AttemptObserver, DestinationPolicyState},
        table::{BuildContext, Reconfigure},
    },
};

/// Admission control that is shared by all requests under one name.
#[derive(Debug)]
pub struct AdmissionState {
    name: Arc<str>,
    /// Controller and mode; the lock covers one call.
    inner: Mutex<(AdmissionController, Mode)>,
}

/// Decision of admission control on one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdmissionDecision {
    /// The request may be sent to the backend.
    Admitted,
    /// The request may be sent to the backend only because of shadow mode.
    WouldReject(AdmissionEvidence),
    /// The request must not be sent to the backend.
    Rejected(AdmissionEvidence),
}

/// Numbers with which admission control rejects a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionEvidence {
    /// Attempts in the window, and how many of them succeeded.
    pub counts: AdmissionCounts,
    /// Share of the requests that are rejected.
    pub rejection_probability: Ratio,
}

impl AdmissionState {
    /// Creates admission control without recorded results.
    #[must_use]
    pub fn new(name: Arc<str>, config: AdmissionConfig, mode: Mode, now: Instant) -> Self {
        Self {
            name,
            inner: Mutex::new((AdmissionController::new(config, now), mode)),
        }
    }

    /// Returns the name that identifies this state across reloads.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Decides on one request. `random` is uniform in `0..1`.
    #[must_use]
    pub fn decide(&self, random: f64, now: Instant) -> AdmissionDecision {
        let mut inner = self.lock();
        if inner.0.should_admit(random, now) {
            return AdmissionDecision::Admitted;
        }
        let evidence = AdmissionEvidence {
            counts: inner.0.counts(now),
            rejection_probability: inner.0.rejection_probability(now),
        };
        match inner.1 {
            Mode::Shadow => AdmissionDecision::WouldReject(evidence),
            Mode::Enforce | Mode::Off => AdmissionDecision::Rejected(evidence),
        }
    }

    /// Records whether an attempt at the backend succeeded.
    pub fn record_result(&self, is_success: bool, now: Instant) {
        self.lock().0.record_result(is_success, now);
    }

    /// Returns the counts of the window, the current rejection probability and the mode.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> (AdmissionCounts, Ratio, Mode) {
        let mut inner = self.lock();
        (
            inner.0.counts(now),
            inner.0.rejection_probability(now),
            inner.1,
        )
    }

    fn lock(&self) -> MutexGuard<'_, (AdmissionController, Mode)> {
        self.inner.lock()
    }
}

impl DestinationPolicyState for AdmissionState {
    fn select_spec(policy: &PolicySpec) -> Option<(&Arc<str>, &AdmissionControlSpec)> {
        policy
            .admission_control
            .as_ref()
            .map(|spec| (&spec.name, spec))
    }

    fn into_observer(self: Arc<Self>) -> Option<Arc<dyn AttemptObserver>> {
        Some(self)
    }
}

impl AttemptObserver for AdmissionState {
    /// Records whether the attempt succeeded. A cancelled attempt is no evidence.
    fn record_attempt_result(&self, outcome: CallOutcome, _: Option<Duration>, now: Instant) {
        if outcome != CallOutcome::Cancelled {
            self.record_result(outcome != CallOutcome::Failure, now);
        }
    }
}

impl Reconfigure for AdmissionState {
    type Spec = AdmissionControlSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(name.clone(), spec.config, spec.mode, context.now)
    }

    /// Applies a new specification and mode.
    ///
    /// A changed configuration discards all recorded results; a changed mode alone retains
    /// them.
    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self> {
        let mut inner = self.lock();
        inner.1 = spec.mode;
        if *inner.0.config() != spec.config {
            inner.0 = AdmissionController::new(spec.config, context.now);
        }
        None
    }
}

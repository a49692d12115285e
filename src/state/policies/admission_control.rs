//! Admission control that is shared.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::resilience::{
    Mode,
    admission::{AdmissionConfig, AdmissionController, AdmissionCounts},
    ratio::Ratio,
};

/// The admission control of a backend by its name.
#[derive(Debug)]
pub struct AdmissionState {
    name: Arc<str>,
    /// Guards one call of the machine.
    inner: Mutex<(AdmissionController, Mode)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// It may go on.
    Admitted,
    /// It may go on because of shadow mode only.
    WouldReject,
    /// It may not.
    Rejected,
}

impl AdmissionState {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(name: Arc<str>, config: AdmissionConfig, mode: Mode, now: Instant) -> Self {
        Self {
            name,
            inner: Mutex::new((AdmissionController::new(config, now), mode)),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Follows other numbers; what was counted over another window, or is measured otherwise, is forgotten.
    pub fn reconfigure(&self, config: AdmissionConfig, mode: Mode, now: Instant) {
        let mut inner = self.lock();
        inner.1 = mode;
        if *inner.0.config() != config {
            inner.0 = AdmissionController::new(config, now);
        }
    }

    /// Asks for a request. `random` is uniform in `0..1`.
    #[must_use]
    pub fn decide(&self, random: f64, now: Instant) -> AdmissionDecision {
        let mut inner = self.lock();
        match (inner.0.should_admit(random, now), inner.1) {
            (true, _) => AdmissionDecision::Admitted,
            (false, Mode::Shadow) => AdmissionDecision::WouldReject,
            (false, Mode::Enforce | Mode::Off) => AdmissionDecision::Rejected,
        }
    }

    /// Counts an attempt.
    pub fn record_result(&self, is_success: bool, now: Instant) {
        self.lock().0.record_result(is_success, now);
    }

    /// What is in the window, the share that is refused, and whether that acts.
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

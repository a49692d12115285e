//! Admission control that is shared.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::resilience::{
    Mode,
    admission::{AdmissionConfig, AdmissionControl, Calls},
    ratio::Ratio,
};

/// The admission control of a backend by its name.
#[derive(Debug)]
pub struct AdmissionState {
    name: Arc<str>,
    /// Guards one call of the machine.
    inner: Mutex<(AdmissionControl, Mode)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Admitted,
    /// It may go on because of shadow mode only.
    WouldRefuse,
    /// It may not.
    Refused,
}

impl AdmissionState {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(name: Arc<str>, config: AdmissionConfig, mode: Mode, now: Instant) -> Self {
        Self {
            name,
            inner: Mutex::new((AdmissionControl::new(config, now), mode)),
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
            inner.0 = AdmissionControl::new(config, now);
        }
    }

    /// Asks for a request. `random` is uniform in `0..1`.
    #[must_use]
    pub fn ask(&self, random: f64, now: Instant) -> Verdict {
        let mut inner = self.lock();
        match (inner.0.admits(random, now), inner.1) {
            (true, _) => Verdict::Admitted,
            (false, Mode::Shadow) => Verdict::WouldRefuse,
            (false, Mode::Enforce | Mode::Off) => Verdict::Refused,
        }
    }

    /// Counts an attempt.
    pub fn note(&self, is_good: bool, now: Instant) {
        self.lock().0.note(is_good, now);
    }

    /// What is in the window, the share that is refused, and whether that acts.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> (Calls, Ratio, Mode) {
        let mut inner = self.lock();
        (inner.0.calls(now), inner.0.rejection(now), inner.1)
    }

    fn lock(&self) -> MutexGuard<'_, (AdmissionControl, Mode)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Telling everybody who wants to know how an attempt went, exactly once.
//!
//! An attempt of HTTP is judged by the head of its answer. One of gRPC may say how it went only in its trailers; then the judgement
//! waits for them, and an answer that breaks off before is a failure. Dropped without a judgement, an attempt was given up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{classify::Judgement, serve::Exchange};
use crate::{
    clock,
    resilience::{
        breaker::{Outcome, Speed},
        outlier::Attempted,
    },
    state::{
        admission::AdmissionState, backend::BackendState, breaker::BreakerGuard, hedge::HedgeState,
        limit::Learner, outlier::Observation,
    },
    telemetry::metrics::AttemptOutcome,
};

/// An attempt that is still to be judged.
pub(super) struct Settlement {
    backend: Arc<BackendState>,
    breaker: Option<BreakerGuard>,
    admission: Option<Arc<AdmissionState>>,
    observation: Option<Observation>,
    hedge: Option<Arc<HedgeState>>,
    learner: Option<Learner>,
    began: Instant,
    slow: Duration,
    /// How long its answer took; none yet.
    took: Option<Duration>,
    /// Whether there is nothing more to tell.
    is_told: bool,
}

impl Settlement {
    /// Who wants to know.
    pub(super) fn new(
        exchange: &Exchange<'_>,
        breaker: Option<BreakerGuard>,
        observation: Option<Observation>,
        began: Instant,
    ) -> Self {
        let destination = exchange.destination;
        let slow = destination
            .policy
            .breaker
            .as_ref()
            .map_or(Duration::MAX, |breaker| breaker.slow_call_duration);
        Self {
            backend: destination.backend.clone(),
            breaker,
            admission: destination.admission.clone(),
            observation,
            hedge: destination.hedge.clone(),
            learner: exchange.learner.cloned(),
            began,
            slow,
            took: None,
            is_told: false,
        }
    }

    /// Takes note of how long the answer took.
    pub(super) fn answered(&mut self, took: Duration) {
        self.took = Some(took);
    }

    /// Judges.
    pub(super) fn settle(
        mut self,
        judgement: Judgement,
        leave_alone: Option<Duration>,
        now: Instant,
    ) {
        self.is_told = true;
        let took = self.took.unwrap_or_default();
        if let (Some(learner), Some(took)) = (self.learner.take(), self.took) {
            judgement.teach(&learner, took, now);
        }
        if let Some(breaker) = self.breaker.take() {
            breaker.settle(
                judgement.outcome,
                Speed::of(took, self.slow),
                now,
                fastrand::f64(),
            );
        }
        if let Some(admission) = self
            .admission
            .take()
            .filter(|_| judgement.outcome != Outcome::Cancelled)
        {
            admission.note(judgement.outcome != Outcome::Failure, now);
        }
        if let Some(observation) = self.observation.take() {
            observation.settle(judgement.attempted, took, leave_alone, now);
        }
        if let Some(hedge) = self
            .hedge
            .take()
            .filter(|_| judgement.outcome == Outcome::Success && self.took.is_some())
        {
            hedge.note(took, now);
        }
        self.backend
            .metrics
            .attempted(judgement.counted, took.as_secs_f64());
    }

    /// Takes note of an answer that has begun well and says only at its end how it went.
    pub(super) fn has_begun(&mut self, now: Instant) {
        let took = self.took.unwrap_or_default();
        if let Some(observation) = &mut self.observation {
            observation.has_begun(took, now);
        }
        // What it says at its end is not about how long it takes to begin.
        if let (Some(learner), Some(took)) = (self.learner.take(), self.took) {
            learner.note(took, false, now);
        }
    }

    /// Leaves it untold: nothing was asked.
    pub(super) fn forget(mut self) {
        self.is_told = true;
    }

    /// Gives up: nothing is known but how long it was waited for.
    pub(super) fn give_up(mut self, now: Instant) {
        self.abandon(now);
    }

    fn abandon(&mut self, now: Instant) {
        self.is_told = true;
        let took = self
            .took
            .unwrap_or_else(|| now.saturating_duration_since(self.began));
        if let Some(observation) = self.observation.take() {
            observation.settle(Attempted::Cancelled, took, None, now);
        }
        self.backend
            .metrics
            .attempted(AttemptOutcome::Cancelled, took.as_secs_f64());
    }
}

impl Drop for Settlement {
    /// An attempt that is dropped, because its client left or another was quicker, has been waited for all the same.
    fn drop(&mut self) {
        if !self.is_told {
            self.abandon(clock::now());
        }
    }
}

/// A failure of the transport.
pub(super) fn cut_off(counted: AttemptOutcome) -> Judgement {
    Judgement {
        outcome: Outcome::Failure,
        attempted: Attempted::LocalOrigin,
        counted,
        is_overload: counted == AttemptOutcome::Timeout,
    }
}

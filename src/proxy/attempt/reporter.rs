//! Telling everybody who wants to know how an attempt went, exactly once.
//!
//! An attempt of HTTP is judged by the head of its answer. One of gRPC may say how it went only in its trailers; then the judgement
//! waits for them, and an answer that breaks off before is a failure. Dropped without a judgement, an attempt was given up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    clock,
    proxy::{
        attempt::endpoint_selection::SelectedEndpoint,
        request::{classify::AttemptVerdict, context::RequestContext},
    },
    resilience::{
        breaker::{CallOutcome, Speed},
        outlier::EndpointResult,
    },
    state::{
        policies::{
            admission_control::AdmissionState, breaker::BreakerGuard,
            concurrency_limit::LimitSampler, hedge::HedgeState,
        },
        topology::{backend::BackendState, outlier::AttemptObservation},
    },
    telemetry::metrics::AttemptOutcome,
};

/// An attempt that is still to be judged.
pub(crate) struct AttemptReporter {
    backend: Arc<BackendState>,
    breaker_guard: Option<BreakerGuard>,
    admission: Option<Arc<AdmissionState>>,
    observation: Option<AttemptObservation>,
    hedge: Option<Arc<HedgeState>>,
    limit_sampler: Option<LimitSampler>,
    started_at: Instant,
    slow_call_duration_threshold: Duration,
    /// How long its answer took; none yet.
    latency: Option<Duration>,
    /// Whether there is nothing more to tell.
    is_reported: bool,
}

impl AttemptReporter {
    /// Who wants to know.
    pub(crate) fn new(
        context: &RequestContext<'_>,
        selected: SelectedEndpoint,
        limit_sampler: Option<LimitSampler>,
        started_at: Instant,
    ) -> Self {
        let destination = context.destination;
        let slow_call_duration_threshold = destination
            .policy
            .breaker
            .as_ref()
            .map_or(Duration::MAX, |breaker| {
                breaker.slow_call_duration_threshold
            });
        Self {
            backend: destination.backend.clone(),
            breaker_guard: selected.breaker_guard,
            admission: destination.admission_control.clone(),
            observation: selected.observation,
            hedge: destination.hedge.clone(),
            limit_sampler,
            started_at,
            slow_call_duration_threshold,
            latency: None,
            is_reported: false,
        }
    }

    /// Takes note of how long the answer took.
    pub(crate) fn record_latency(&mut self, latency: Duration) {
        self.latency = Some(latency);
    }

    /// Judges.
    pub(crate) fn report(
        mut self,
        verdict: AttemptVerdict,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        self.is_reported = true;
        let latency = self.latency.unwrap_or_default();
        if let (Some(limit_sampler), Some(latency)) = (self.limit_sampler.take(), self.latency) {
            verdict.record_sample(&limit_sampler, latency, now);
        }
        if let Some(breaker) = self.breaker_guard.take() {
            breaker.settle(
                verdict.breaker_outcome,
                Speed::from_duration(latency, self.slow_call_duration_threshold),
                now,
                fastrand::f64(),
            );
        }
        if let Some(admission) = self
            .admission
            .take()
            .filter(|_| verdict.breaker_outcome != CallOutcome::Cancelled)
        {
            admission.record_result(verdict.breaker_outcome != CallOutcome::Failure, now);
        }
        if let Some(observation) = self.observation.take() {
            observation.settle(verdict.outlier_outcome, latency, retry_after, now);
        }
        if let Some(hedge) = self
            .hedge
            .take()
            .filter(|_| verdict.breaker_outcome == CallOutcome::Success && self.latency.is_some())
        {
            hedge.record_latency(latency, now);
        }
        self.backend
            .metrics
            .record_attempt(verdict.attempt_outcome, latency.as_secs_f64());
    }

    /// Takes note of an answer that has begun well and says only at its end how it went.
    pub(crate) fn record_response_start(&mut self, now: Instant) {
        let latency = self.latency.unwrap_or_default();
        if let Some(observation) = &mut self.observation {
            observation.record_response_start(latency, now);
        }
        // What it says at its end is not about how long it takes to begin.
        if let (Some(limit_sampler), Some(latency)) = (self.limit_sampler.take(), self.latency) {
            limit_sampler.record_sample(latency, false, now);
        }
    }

    /// Leaves it untold: nothing was asked.
    pub(crate) fn discard(mut self) {
        self.is_reported = true;
    }

    /// Gives up: nothing is known but how long it was waited for.
    pub(crate) fn report_cancelled(mut self, now: Instant) {
        self.record_cancelled(now);
    }

    fn record_cancelled(&mut self, now: Instant) {
        self.is_reported = true;
        let latency = self
            .latency
            .unwrap_or_else(|| now.saturating_duration_since(self.started_at));
        if let Some(observation) = self.observation.take() {
            observation.settle(EndpointResult::Cancelled, latency, None, now);
        }
        self.backend
            .metrics
            .record_attempt(AttemptOutcome::Cancelled, latency.as_secs_f64());
    }
}

impl Drop for AttemptReporter {
    /// An attempt that is dropped, because its client left or another was quicker, has been waited for all the same.
    fn drop(&mut self) {
        if !self.is_reported {
            self.record_cancelled(clock::now());
        }
    }
}

/// A failure of the transport.
pub(crate) fn transport_failure_verdict(attempt_outcome: AttemptOutcome) -> AttemptVerdict {
    AttemptVerdict {
        breaker_outcome: CallOutcome::Failure,
        outlier_outcome: EndpointResult::LocalOriginFailure,
        attempt_outcome,
        is_overload: attempt_outcome == AttemptOutcome::Timeout,
    }
}

//! Reports the outcome of an attempt to every observer, exactly once.
//!
//! The breaker, outlier detection with the load balancer, and the adaptive concurrency limit
//! each receive the outcome through a guard of the attempt. All other observers are a list of
//! the destination. The metrics are last.
//!
//! - An HTTP attempt is classified by its response head.
//! - A gRPC attempt may carry its status only in the trailers. The report then waits for them,
//!   and a response that breaks off before is a failure.
//! - An attempt that is dropped without a report counts as cancelled.
//!
//! The module does not classify outcomes; it receives the verdict.

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
            breaker::BreakerGuard, concurrency_limit::LimitSampler,
            destination_policy::AttemptObserver,
        },
        topology::{backend::BackendState, outlier::AttemptObservation},
    },
    telemetry::backend_metrics::AttemptOutcome,
};

/// An attempt whose outcome is not reported yet, with its observers.
pub(crate) struct AttemptReporter {
    backend: Arc<BackendState>,
    breaker_guard: Option<BreakerGuard>,
    observation: Option<AttemptObservation>,
    /// Observers that need no permit; `None` if there are none.
    observers: Option<Arc<[Arc<dyn AttemptObserver>]>>,
    limit_sampler: Option<LimitSampler>,
    started_at: Instant,
    slow_call_duration_threshold: Duration,
    /// Time to the response head, without the time that the client took to send; `None` until
    /// it is known.
    latency: Option<Duration>,
    /// Whether the outcome was reported or discarded, so that a drop reports nothing.
    is_reported: bool,
}

impl AttemptReporter {
    /// Creates the report of an attempt that starts now, with the observers of its destination.
    pub(crate) fn new(
        context: &RequestContext<'_>,
        selected: SelectedEndpoint,
        limit_sampler: Option<LimitSampler>,
        started_at: Instant,
    ) -> Self {
        let destination = context.destination;
        let slow_call_duration_threshold = destination
            .policy
            .circuit_breaker
            .as_ref()
            .map_or(Duration::MAX, |breaker| {
                breaker.slow_call_duration_threshold
            });
        Self {
            backend: destination.backend.clone(),
            breaker_guard: selected.breaker_guard,
            observation: selected.observation,
            observers: destination.policy_states.observers.clone(),
            limit_sampler,
            started_at,
            slow_call_duration_threshold,
            latency: None,
            is_reported: false,
        }
    }

    /// Records the latency of the response head, which a later report uses.
    pub(crate) fn record_latency(&mut self, latency: Duration) {
        self.latency = Some(latency);
    }

    /// Reports the verdict of the attempt to every observer.
    pub(crate) fn report(
        mut self,
        verdict: AttemptVerdict,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        self.is_reported = true;
        let latency = self.latency.unwrap_or_default();
        if let (Some(limit_sampler), Some(latency)) = (self.limit_sampler.take(), self.latency) {
            // Failures other than an overload are skipped: their latency says nothing about the
            // time that the backend needs for its work.
            if verdict.is_overload || verdict.breaker_outcome == CallOutcome::Success {
                limit_sampler.record_sample(latency, verdict.is_overload, now);
            }
        }
        if let Some(breaker) = self.breaker_guard.take() {
            breaker.settle(
                verdict.breaker_outcome,
                Speed::from_duration(latency, self.slow_call_duration_threshold),
                now,
                fastrand::f64(),
            );
        }
        if let Some(observation) = self.observation.take() {
            observation.settle(verdict.outlier_outcome, latency, retry_after, now);
        }
        for observer in self.observers.iter().flat_map(|observers| &**observers) {
            observer.record_attempt_result(verdict.breaker_outcome, self.latency, now);
        }
        self.backend
            .metrics
            .record_attempt(verdict.attempt_outcome, latency.as_secs_f64());
    }

    /// Records that the response has begun, while its verdict is still unknown.
    ///
    /// This settles a probe of outlier detection, which must not wait for a long stream.
    pub(crate) fn record_response_start(&mut self, now: Instant) {
        let latency = self.latency.unwrap_or_default();
        if let Some(observation) = &mut self.observation {
            observation.record_response_start(latency, now);
        }
        // A later failure says nothing about the latency, so the limit receives its sample now.
        if let (Some(limit_sampler), Some(latency)) = (self.limit_sampler.take(), self.latency) {
            limit_sampler.record_sample(latency, false, now);
        }
    }

    /// Reports no outcome, because the endpoint did not process the request. The guards settle
    /// as cancelled when they are dropped.
    pub(crate) fn discard(mut self) {
        self.is_reported = true;
    }

    /// Reports the attempt as cancelled. Only the elapsed time is known.
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
    /// Reports a dropped attempt as cancelled: its client closed, or another attempt won. Its
    /// elapsed time still counts.
    fn drop(&mut self) {
        if !self.is_reported {
            self.record_cancelled(clock::now());
        }
    }
}

/// Returns the verdict of an attempt that failed without a complete response.
pub(crate) fn transport_failure_verdict(attempt_outcome: AttemptOutcome) -> AttemptVerdict {
    AttemptVerdict {
        breaker_outcome: CallOutcome::Failure,
        outlier_outcome: EndpointResult::LocalOriginFailure,
        attempt_outcome,
        is_overload: attempt_outcome == AttemptOutcome::Timeout,
    }
}

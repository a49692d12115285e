//! Counts the attempts, retries, hedges and mirrored requests of one backend.
//!
//! This module maps each outcome to a counter. It does not know how the outcome of an attempt is
//! classified; the proxy does.

use metrics::{Counter, Histogram};

use crate::{
    resilience::retry::RetryStopReason,
    telemetry::{
        label::{LabelledCounters, counted_labels},
        metric_names as name,
        metrics::Metrics,
    },
};

counted_labels! {
    /// Outcome of an attempt at an endpoint.
    AttemptOutcome {
        /// A response that does not count as a failure.
        Success = "success",
        /// A response that counts as a failure for the breaker policy.
        Failure = "failure",
        /// A response with status 429 or the gRPC status RESOURCE_EXHAUSTED.
        Throttled = "throttled",
        /// No connection was established in time, or its TLS handshake failed.
        ConnectFailure = "connect_failure",
        /// The connection or stream was reset, or the response was malformed.
        Reset = "reset",
        /// The response did not arrive or did not continue in time.
        Timeout = "timeout",
        /// The attempt ended without an outcome: the client closed, or another attempt won.
        Cancelled = "cancelled",
    }
}

counted_labels! {
    /// Outcome of a hedge, which is an additional attempt because of a late response.
    HedgeOutcome {
        /// The additional attempt was sent.
        Sent = "sent",
        /// The response of an additional attempt was used; its sending is counted as well.
        Won = "won",
        /// The retry budget had no room for the additional attempt.
        BudgetExhausted = "no_budget",
        /// No additional attempt was sent, because the policy is in shadow mode.
        Shadow = "shadow",
    }
}

counted_labels! {
    /// Outcome of a mirrored copy of a request.
    MirrorOutcome {
        /// The mirror responded to the copy.
        Sent = "sent",
        /// The mirror did not respond to the copy in time.
        Failed = "failed",
        /// No copy was sent. A limit of the mirror was reached, or the request could not be copied
        /// in time.
        Skipped = "skipped",
    }
}

/// Handles of the metrics of one backend.
#[derive(Debug)]
pub struct BackendMetrics {
    attempts: LabelledCounters<AttemptOutcome>,
    attempt_seconds: Histogram,
    /// Counts retries of the retry policy, without hedges and reselections.
    pub retries: Counter,
    /// Counts attempts that a draining or new endpoint did not process and that were sent to
    /// another endpoint.
    pub reselected: Counter,
    retry_stops: LabelledCounters<RetryStopReason>,
    hedges: LabelledCounters<HedgeOutcome>,
    mirrored: LabelledCounters<MirrorOutcome>,
}

impl BackendMetrics {
    /// Registers the metrics of a backend, whose name is the label `backend`.
    #[must_use]
    pub fn new(metrics: &Metrics, backend: &str) -> Self {
        let labelled = |name: &'static str, label: &'static str| {
            move |value: &'static str| {
                metrics.counter(name, &[("backend", backend), (label, value)])
            }
        };
        let only = [("backend", backend)];
        Self {
            attempts: LabelledCounters::new(labelled(name::ATTEMPTS, "outcome")),
            attempt_seconds: metrics.histogram(name::ATTEMPT_SECONDS, &only),
            retries: metrics.counter(name::RETRIES, &only),
            reselected: metrics.counter(name::RESELECTED_REQUESTS, &only),
            retry_stops: LabelledCounters::new(labelled(name::RETRIES_STOPPED, "why")),
            hedges: LabelledCounters::new(labelled(name::HEDGES, "result")),
            mirrored: LabelledCounters::new(labelled(name::MIRRORED, "result")),
        }
    }

    /// Counts an attempt by its outcome, and records its latency in seconds.
    pub fn record_attempt(&self, outcome: AttemptOutcome, seconds: f64) {
        self.attempts.increment(outcome);
        self.attempt_seconds.record(seconds);
    }

    /// Counts a hedge by its outcome.
    pub fn record_hedge(&self, outcome: HedgeOutcome) {
        self.hedges.increment(outcome);
    }

    /// Counts a mirrored copy by its outcome.
    pub fn record_mirror(&self, outcome: MirrorOutcome) {
        self.mirrored.increment(outcome);
    }

    /// Counts a failed attempt that was not retried, by reason.
    pub fn record_retry_stop(&self, reason: RetryStopReason) {
        self.retry_stops.increment(reason);
    }
}

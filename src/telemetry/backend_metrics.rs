//! The metrics of a backend.

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
    /// How an attempt ended.
    AttemptOutcome {
        /// A response that is no failure.
        Success = "success",
        /// A response that is a failure.
        Failure = "failure",
        /// A response that states an overload.
        Throttled = "throttled",
        /// No connection.
        ConnectFailure = "connect_failure",
        /// The connection or stream was cut off.
        Reset = "reset",
        /// No response in time.
        Timeout = "timeout",
        /// The client closed its connection first.
        Cancelled = "cancelled",
    }
}

counted_labels! {
    /// What became of a further attempt for a late response.
    HedgeOutcome {
        /// It was sent.
        Sent = "sent",
        /// Its response arrived first.
        Won = "won",
        /// The retry budget had no room for it.
        BudgetExhausted = "no_budget",
        /// It was not sent: the policy is in shadow mode.
        Shadow = "shadow",
    }
}

counted_labels! {
    /// What became of a mirrored request.
    MirrorOutcome {
        /// The mirror responded.
        Sent = "sent",
        /// The mirror did not respond.
        Failed = "failed",
        /// No copy was sent: too many were in flight, or the body was too long or too late.
        Skipped = "skipped",
    }
}

/// The handles of the metrics of one backend.
#[derive(Debug)]
pub struct BackendMetrics {
    attempts: LabelledCounters<AttemptOutcome>,
    attempt_seconds: Histogram,
    /// Attempts after the first.
    pub retries: Counter,
    /// Attempts that an endpoint did not process, and that another endpoint received.
    pub reselected: Counter,
    retry_stops: LabelledCounters<RetryStopReason>,
    hedges: LabelledCounters<HedgeOutcome>,
    mirrored: LabelledCounters<MirrorOutcome>,
}

impl BackendMetrics {
    /// Registers the metrics of a backend.
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

    /// Counts an attempt and its latency.
    pub fn record_attempt(&self, outcome: AttemptOutcome, seconds: f64) {
        self.attempts.increment(outcome);
        self.attempt_seconds.record(seconds);
    }

    /// Counts what became of a hedge.
    pub fn record_hedge(&self, outcome: HedgeOutcome) {
        self.hedges.increment(outcome);
    }

    /// Counts what became of a mirrored request.
    pub fn record_mirror(&self, outcome: MirrorOutcome) {
        self.mirrored.increment(outcome);
    }

    /// Counts a failed attempt that was not retried.
    pub fn record_retry_stop(&self, reason: RetryStopReason) {
        self.retry_stops.increment(reason);
    }
}

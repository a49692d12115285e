//! The decision whether a failed attempt is retried.
//!
//! The important question is not whether the attempt failed, but whether the request may have
//! run. Default retries of service meshes have repeated payments (istio/istio#50506). RFC 9110,
//! section 9.2.2, forbids a proxy to retry a request that is not idempotent, unless it knows
//! that the request did not run. Failures therefore belong to one of four classes:
//!
//! | class | failure | may be retried |
//! | --- | --- | --- |
//! | A, never processed | no byte sent, or the backend reports no processing | any method (1) |
//! | B, unknown | a reset after the request was sent, or the per-try timeout | idempotent methods |
//! | C, status | a status that the policy retries | idempotent methods (2) |
//! | D, final | own rejection, response started, body lost, upgrade | never |
//!
//! 1. Such a retry is transparent: it is not counted as an attempt, and happens at most twice.
//! 2. Any method, if the policy marks the status as one that is sent before a call runs.
//!
//! `retry_non_idempotent` permits all methods in classes B and C.
//!
//! If the downstream proxy already retries a request, only class A is retried. Otherwise the
//! load would multiply at every hop.
//!
//! A retry also needs all of the following:
//!
//! - a trigger in the policy,
//! - a remaining attempt,
//! - the whole request body,
//! - enough time for the wait and a minimum attempt before the deadline of the request.
//!
//! The caller checks the shared retry budget last. If any of these is missing, the last
//! response is relayed unchanged. The module does not send requests, and does not know
//! statuses.

use std::{fmt, time::Duration};

use crate::resilience::backoff::Backoff;

/// Maximum number of class A retries per request. `attempts` does not count them, so they need
/// their own bound.
const MAX_TRANSPARENT_RETRIES: u32 = 2;

/// Minimum time for an attempt. A shorter attempt is not started, because it would only add
/// load.
const MIN_ATTEMPT_DURATION: Duration = Duration::from_millis(1);

/// Maximum `Retry-After` that is respected (linkerd2-proxy uses the same cap).
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How an attempt failed, which determines the class of the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Class A: no connection could be established.
    ConnectFailure,
    /// Class A: the connection ended before any byte of the request was written.
    ResetBeforeRequest,
    /// Class A: the backend reports that it did not process the request.
    ///
    /// In HTTP/2 this is a refused stream, or a stream above the last one of a GOAWAY frame.
    RefusedStream,
    /// Class B: the connection ended after the request was written, and before a response.
    Reset,
    /// Class B: no response arrived within the per-try timeout.
    PerTryTimeout,
    /// Class C: the response has a status that the policy retries.
    Status {
        /// Wait that the response requests, or `None` without `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Class C: the response has only a status (gRPC A6, "Trailers-Only"), and the policy marks
    /// that status as sent before a call runs. Any method may be retried.
    UnprocessedStatus {
        /// Wait that the response requests, or `None` without `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Class D: the failure is never retried.
    NotRetryable,
}

/// Failures that the policy retries, besides statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of names, each given or not"
)]
pub struct RetryTriggers {
    /// Retries an attempt without a connection (`connect-failure`).
    pub connect_failure: bool,
    /// Retries a request that the backend did not process (`refused-stream`).
    pub refused_stream: bool,
    /// Retries after a connection that ended before the request was written
    /// (`reset-before-request`).
    pub reset_before_request: bool,
    /// Retries after a connection that ended before the response (`reset`).
    pub reset: bool,
    /// Retries after a per-try timeout (`timeout`).
    pub timeout: bool,
}

/// Writes the names that policies use, separated by spaces.
impl fmt::Display for RetryTriggers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let triggers = [
            (self.connect_failure, "connect-failure"),
            (self.refused_stream, "refused-stream"),
            (self.reset_before_request, "reset-before-request"),
            (self.reset, "reset"),
            (self.timeout, "timeout"),
        ];
        let names = triggers.iter().filter(|(is_set, _)| *is_set);
        for (index, (_, name)) in names.enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

/// Retry policy of a route: its bounds, its triggers and its backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// Maximum number of retries after the first attempt, without transparent retries.
    pub attempts: u32,
    /// Failures that are retried, besides statuses.
    pub triggers: RetryTriggers,
    /// Wait before a retry, unless a `Retry-After` replaces it.
    pub backoff: Backoff,
    /// Whether methods that are not idempotent may be retried in classes B and C.
    pub retry_non_idempotent: bool,
    /// Whether the `Retry-After` of a response replaces the backoff.
    pub respect_retry_after: bool,
}

/// Failure of an attempt, and the state of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryContext {
    /// How the attempt failed.
    pub failure: FailureKind,
    /// Whether a retry is harmless, because of the method or an idempotency key.
    pub is_idempotent: bool,
    /// Whether all body bytes that were read from the client are still buffered.
    pub is_body_replayable: bool,
    /// Whether the downstream proxy already retries this request.
    pub is_retried_by_downstream: bool,
    /// Number of retries so far, without transparent ones.
    pub retries: u32,
    /// Number of transparent (class A) retries so far.
    pub transparent_retries: u32,
    /// Time left until the deadline of the request.
    pub time_left: Duration,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// The request is sent again after the wait, if the retry budget allows it.
    Retry {
        /// Time to wait before the retry.
        wait: Duration,
        /// Whether the failure is of class A, so that the retry is not counted as an attempt.
        is_transparent: bool,
    },
    /// The request is not retried, for this reason.
    Stop(RetryStopReason),
}

/// Reason why a failed attempt is not retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryStopReason {
    /// The policy does not retry this failure.
    NotTriggered,
    /// The request may have run, and a repetition may do harm.
    NotIdempotent,
    /// The downstream proxy already retries the request.
    RetriedByDownstream,
    /// A part of the request body is no longer buffered.
    BodyNotReplayable,
    /// All retries are used, either those of the policy or the transparent ones.
    AttemptsExhausted,
    /// The wait and an attempt do not fit into the time left.
    NoTimeLeft,
    /// The retry budget of the backend is spent.
    BudgetExhausted,
    /// The maximum number of requests that retry at the same time is reached.
    TooManyInFlight,
    /// The breaker of the backend has just tripped.
    BreakerOpen,
    /// The retry policy is in shadow mode and does not act.
    Shadow,
}

impl RetryStopReason {
    /// All reasons, in the order of declaration.
    pub const ALL: [Self; 10] = [
        Self::NotTriggered,
        Self::NotIdempotent,
        Self::RetriedByDownstream,
        Self::BodyNotReplayable,
        Self::AttemptsExhausted,
        Self::NoTimeLeft,
        Self::BudgetExhausted,
        Self::TooManyInFlight,
        Self::BreakerOpen,
        Self::Shadow,
    ];

    /// Returns the reason as a phrase for logs and diagnostics.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::NotTriggered => "the policy does not retry this failure",
            Self::NotIdempotent => "the request may have run, and a repetition may do harm",
            Self::RetriedByDownstream => "the sender retries already",
            Self::BodyNotReplayable => "the request body is not buffered",
            Self::AttemptsExhausted => "all attempts are used",
            Self::NoTimeLeft => "a wait and an attempt do not fit into the time left",
            Self::BudgetExhausted => "the retry budget is spent",
            Self::TooManyInFlight => "too many requests are retrying",
            Self::BreakerOpen => "the breaker has just opened",
            Self::Shadow => "the retry policy is in shadow mode",
        }
    }
}

impl RetryConfig {
    /// Decides whether the failed attempt is retried.
    ///
    /// `random` is uniform in `0..1` and draws the backoff. The caller checks the retry budget.
    #[must_use]
    pub fn decide(&self, context: &RetryContext, random: f64) -> RetryDecision {
        let triggers = &self.triggers;
        let (is_wanted, is_transparent) = match context.failure {
            FailureKind::ConnectFailure => (triggers.connect_failure, true),
            FailureKind::ResetBeforeRequest => (triggers.reset_before_request, true),
            FailureKind::RefusedStream => (triggers.refused_stream, true),
            FailureKind::Reset => (triggers.reset, false),
            FailureKind::PerTryTimeout => (triggers.timeout, false),
            FailureKind::Status { .. } | FailureKind::UnprocessedStatus { .. } => (true, false),
            FailureKind::NotRetryable => (false, false),
        };
        if !is_wanted {
            return RetryDecision::Stop(RetryStopReason::NotTriggered);
        }
        let may_have_run =
            !is_transparent && !matches!(context.failure, FailureKind::UnprocessedStatus { .. });
        if may_have_run && !context.is_idempotent && !self.retry_non_idempotent {
            return RetryDecision::Stop(RetryStopReason::NotIdempotent);
        }
        if context.is_retried_by_downstream && !is_transparent {
            return RetryDecision::Stop(RetryStopReason::RetriedByDownstream);
        }
        if !context.is_body_replayable {
            return RetryDecision::Stop(RetryStopReason::BodyNotReplayable);
        }
        let (made, allowed) = if is_transparent {
            (context.transparent_retries, MAX_TRANSPARENT_RETRIES)
        } else {
            (context.retries, self.attempts)
        };
        if made >= allowed {
            return RetryDecision::Stop(RetryStopReason::AttemptsExhausted);
        }
        let wait = self.wait(context, made + 1, random);
        if wait.saturating_add(MIN_ATTEMPT_DURATION) > context.time_left {
            return RetryDecision::Stop(RetryStopReason::NoTimeLeft);
        }
        RetryDecision::Retry {
            wait,
            is_transparent,
        }
    }

    fn wait(&self, context: &RetryContext, n: u32, random: f64) -> Duration {
        match context.failure {
            FailureKind::Status {
                retry_after: Some(requested),
            }
            | FailureKind::UnprocessedStatus {
                retry_after: Some(requested),
            } if self.respect_retry_after => requested.min(MAX_RETRY_AFTER),
            _ => self.backoff.wait(n, random),
        }
    }
}

#[cfg(test)]
mod tests;

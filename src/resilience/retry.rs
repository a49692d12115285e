//! Whether a failed attempt may be made again.
//!
//! The question that matters is not whether the attempt failed, but whether the request may have run. Default retries of
//! service meshes have repeated payments (istio/istio#50506); RFC 9110 section 9.2.2 forbids a proxy to repeat a request that
//! is not idempotent unless it knows that it did not run. Failures are therefore sorted into four classes:
//!
//! | class | means | may be repeated |
//! | --- | --- | --- |
//! | A, never reached | no byte of the request got out, or the backend says that it looked at none | any method; not counted as an attempt, at most twice |
//! | B, unknown | cut off after the request was written, or the per-try timeout | idempotent methods only |
//! | C, answered | a status that says "try again" | idempotent methods only; any, for what the policy names as given before a call runs |
//! | D, final | refused by ourselves, answer begun, body gone, an upgrade | never |
//!
//! What is itself a retry of the proxy before is not repeated, but for class A: every hop would multiply the load of the one before it.
//!
//! A repeat also needs its trigger in the policy, an attempt left, the whole body at hand, and time: the wait and a shortest
//! useful try must fit into what is left of the request's deadline. The caller asks the budget last, because it is shared.
//! Past any of these bounds the last answer of the app is passed through as it is.

use std::time::Duration;

use crate::resilience::backoff::Backoff;

/// Repeats of class A per request; they are not counted in `attempts`, so they need a bound of their own.
pub const MAX_TRANSPARENT_RETRIES: u32 = 2;

/// A try with less time than this left is not begun: it would only add load.
pub const MIN_ATTEMPT_DURATION: Duration = Duration::from_millis(1);

/// A wait that a backend asked for is believed up to this (linkerd2-proxy uses the same cap).
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Class A: no connection could be made.
    ConnectFailure,
    /// Class A: the connection ended before a byte of the request was written.
    ResetBeforeRequest,
    /// Class A: the backend said that it did not look at the request (HTTP/2: a refused stream, or one after GOAWAY).
    RefusedStream,
    /// Class B: the connection ended after the request was written and before an answer.
    Reset,
    /// Class B: no answer within the per-try timeout.
    PerTryTimeout,
    /// Class C: answered with a status that the policy wants repeated.
    Status {
        /// The wait that the answer asked for.
        retry_after: Option<Duration>,
    },
    /// Class C: a status instead of an answer (gRPC A6, "Trailers-Only") that the policy names as one which is given before a call runs; so
    /// any method may be tried again.
    UnprocessedStatus {
        /// The wait that the answer asked for.
        retry_after: Option<Duration>,
    },
    /// Class D.
    NotRetryable,
}

/// Which failures the policy wants repeated, besides the statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of names, each given or not"
)]
pub struct RetryTriggers {
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `reset-before-request`.
    pub reset_before_request: bool,
    /// `reset`.
    pub reset: bool,
    /// `timeout`.
    pub timeout: bool,
}

/// What a retry follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// Retries after the first attempt.
    pub attempts: u32,
    /// Which failures besides statuses.
    pub triggers: RetryTriggers,
    /// How long to wait before one.
    pub backoff: Backoff,
    /// Whether methods that are not idempotent may be repeated in classes B and C.
    pub retry_non_idempotent: bool,
    /// Whether a wait that the backend asked for replaces the backoff.
    pub respect_retry_after: bool,
}

/// What is known of the request when an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryContext {
    /// How it failed.
    pub failure: FailureKind,
    /// Whether repeating the request is harmless by its method, or by an idempotency key.
    pub is_idempotent: bool,
    /// Whether all of the body that was read from the client is still at hand.
    pub is_body_replayable: bool,
    /// Whether the proxy before repeats it already.
    pub is_retried_by_downstream: bool,
    /// Retries made so far, without transparent ones.
    pub retries: u32,
    /// Retries of class A made so far.
    pub transparent_retries: u32,
    /// What is left until the request's deadline.
    pub time_left: Duration,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after the wait, if the budget allows.
    Retry {
        /// How long to wait first.
        wait: Duration,
        /// Whether it is of class A and does not count as an attempt.
        is_transparent: bool,
    },
    /// Do not, and why.
    Stop(RetryStopReason),
}

/// Why a failed attempt is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryStopReason {
    /// The policy does not retry this failure.
    NotTriggered,
    /// The request may have run, and a repetition may do harm.
    NotIdempotent,
    /// The proxy before this one retries already.
    RetriedByDownstream,
    /// A part of the request body is no longer buffered.
    BodyNotReplayable,
    /// All attempts of the policy are used.
    AttemptsExhausted,
    /// The wait and an attempt do not fit into the time left.
    NoTimeLeft,
    /// The retry budget is spent.
    BudgetExhausted,
    /// As many requests retry as the policy allows at the same time.
    TooManyInFlight,
    /// The breaker of the backend has just tripped.
    BreakerOpen,
    /// The retry policy is in shadow mode.
    Shadow,
}

impl RetryStopReason {
    /// Every reason, in the order of declaration.
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

    /// Returns the reason as a person reads it.
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
    /// Decides; `random` is uniform in `0..1` and draws the backoff.
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

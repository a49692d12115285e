//! Retries: whether and when an attempt is retried, and what happens to the failed response.
//!
//! The module collects the facts, and the pure `RetryConfig::decide` decides. The retry budget
//! can still prevent the retry. The module does not send the next attempt.

use std::time::{Duration, Instant};

use crate::{
    clock,
    proxy::{
        attempt::{
            history::{AttemptHistory, AttemptSeries},
            outcome::UpstreamResponse,
        },
        downstream::task::RequestTask,
        request::{classify, context::RequestContext, grpc, view::RequestView},
    },
    resilience::{
        Mode,
        retry::{FailureKind, RetryContext, RetryDecision, RetryStopReason},
    },
    state::policies::retry_budget::RetryRejection,
    telemetry::decision::Decision,
};

/// Returns the failure that a response represents, or `None` if the policy does not retry its
/// status.
pub(crate) fn failure_from_response(
    context: &RequestContext<'_>,
    response: &UpstreamResponse,
) -> Option<FailureKind> {
    let head = response.stream.head()?;
    if response.head.is_unprocessed {
        return Some(FailureKind::RefusedStream);
    }
    let policy = &context.destination.policy.retry;
    let retry_after = classify::parse_retry_after(head, clock::wall_time);
    match response.head.grpc_status {
        Some(status) if head.status == 200 => {
            let trailers = response.stream.trailers();
            let is_named = policy.grpc_codes & (1 << status) != 0;
            // A backend may state when to retry, or that a retry must not follow (gRPC A6,
            // "Pushback").
            let pushback = is_named
                .then(|| grpc::parse_retry_pushback(trailers.unwrap_or(&head.headers)))
                .flatten()?;
            // A trailers-only response with a status that the policy names means that the call
            // did not run.
            Some(if grpc::parse_status(&head.headers).is_some() {
                FailureKind::UnprocessedStatus {
                    retry_after: pushback,
                }
            } else {
                FailureKind::Status {
                    retry_after: pushback,
                }
            })
        }
        _ => (!response.head.is_upgrade && policy.codes.contains(head.status.as_u16()))
            .then_some(FailureKind::Status { retry_after }),
    }
}

/// Returns whether the proxy waits for the first message of a gRPC call before it forwards the
/// head.
///
/// The call may end with a status before that message, and could then be retried.
pub(crate) fn may_retry_on_trailers(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    history: &AttemptHistory,
) -> bool {
    let policy = &context.destination.policy.retry;
    let has_retries_left = policy.mode == Mode::Enforce
        && policy.grpc_codes != 0
        && history.retries() < policy.config.attempts;
    has_retries_left
        && request.is_grpc
        && (policy.config.retry_non_idempotent || request.is_idempotent())
        && request.downstream_attempt() == 1
}

/// Decides on a retry and withdraws it from the retry budget.
///
/// Returns the delay before the retry, or `None` if the outcome stands. A request holds one
/// permit of the concurrent retries until it ends, however often it retries.
pub(crate) fn decide_retry(
    task: &mut RequestTask<'_>,
    series: &mut AttemptSeries,
    failure: FailureKind,
) -> Option<Duration> {
    let context = task.context;
    let destination = context.destination;
    let policy = &destination.policy.retry;
    if policy.mode == Mode::Off {
        return None;
    }
    let now = clock::now();
    let situation = retry_context(task, series, failure, now);
    let decision = policy.config.decide(&situation, fastrand::f64());
    let stopped = match decision {
        RetryDecision::Stop(reason) => Err(reason),
        RetryDecision::Retry { .. } if policy.mode == Mode::Shadow => Err(RetryStopReason::Shadow),
        // An open breaker would reject the retry. The present response is worth more than that
        // rejection.
        RetryDecision::Retry { .. }
            if destination
                .breaker
                .as_ref()
                .is_some_and(|breaker| breaker.retry_after(now).is_some()) =>
        {
            Err(RetryStopReason::BreakerOpen)
        }
        RetryDecision::Retry {
            wait,
            is_transparent,
        } => match destination.withdraw_retry(&mut task.permits.retry, now) {
            Ok(()) => Ok((wait, is_transparent)),
            Err(RetryRejection::BudgetExhausted) => Err(RetryStopReason::BudgetExhausted),
            Err(RetryRejection::TooManyInFlight) => Err(RetryStopReason::TooManyInFlight),
        },
    };
    match stopped {
        Err(reason) => {
            record_stop(&context, &situation, reason, now);
            None
        }
        Ok((wait, is_transparent)) => {
            series.history.record_retry(is_transparent);
            destination.backend.metrics.retries.increment(1);
            context.decision_trace.record(Decision::Retried {
                wait,
                is_transparent,
                budget_remaining: destination.retry_budget.remaining(now),
            });
            Some(wait)
        }
    }
}

fn retry_context(
    task: &RequestTask<'_>,
    series: &AttemptSeries,
    failure: FailureKind,
    now: Instant,
) -> RetryContext {
    let request = task.request();
    let stream_idle = task.stream_idle_timeout().unwrap_or(Duration::MAX);
    // While the client still sends, no deadline runs. The stream idle timeout bounds the wait.
    let bound = if task.body.is_done() {
        Duration::MAX
    } else {
        stream_idle
    };
    RetryContext {
        failure,
        is_idempotent: request.is_idempotent(),
        is_body_replayable: task.body.is_replayable(),
        is_retried_by_downstream: request.downstream_attempt() > 1,
        retries: series.history.retries(),
        transparent_retries: series.history.transparent_retries(),
        time_left: series.deadline.time_left(now).min(bound),
    }
}

fn record_stop(
    context: &RequestContext<'_>,
    situation: &RetryContext,
    reason: RetryStopReason,
    now: Instant,
) {
    let destination = context.destination;
    destination.backend.metrics.record_retry_stop(reason);
    let time_left = if situation.time_left == Duration::MAX {
        "no deadline".to_owned()
    } else {
        format!("{:.1?} are left", situation.time_left)
    };
    let evidence = format!(
        "{} of {} retries, {} unprocessed attempts, {time_left}, {} retries left in the budget",
        situation.retries,
        destination.policy.retry.config.attempts,
        situation.transparent_retries,
        destination.retry_budget.remaining(now)
    );
    context.decision_trace.record(Decision::NotRetried {
        cause: reason.description(),
        evidence,
    });
}

//! Whether and when an attempt is made again: the pure decision, the budget, and the clearing away of the failed one.

use std::time::Duration;

use crate::{
    clock,
    proxy::{
        asked::RequestView, attempt::UpstreamResponse, classify, client::Client,
        deadline::Deadline, grpc, request_body::RequestBody, serve::RequestContext,
    },
    resilience::{
        Mode,
        retry::{FailureKind, RetryContext, RetryDecision, RetryStopReason},
    },
    state::policies::retry_budget::{RetryGuard, RetryRejection},
    telemetry::{decision_log::Decision, metrics::RetryStop},
};

/// An answer that is thrown away for a retry is read to its end up to this, so that its connection can be used again.
const MAX_DISCARDED_BYTES: usize = 64 << 10;

/// And for so long.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(25);

/// What was tried so far.
#[derive(Debug, Default)]
pub(super) struct AttemptHistory {
    endpoints: Vec<usize>,
    retries: u32,
    transparent_retries: u32,
}

impl AttemptHistory {
    pub(super) fn record_endpoint(&mut self, endpoint: usize) {
        if !self.has_tried(endpoint) {
            self.endpoints.push(endpoint);
        }
    }

    /// Whether nothing was tried yet.
    pub(super) fn is_first_attempt(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many endpoints were tried.
    pub(super) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// Which attempt the next one is of those that the backend can have seen, from 1.
    pub(super) fn attempt_number(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// Another one goes out besides.
    pub(super) fn record_hedge(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    pub(super) fn has_tried(&self, endpoint: usize) -> bool {
        self.endpoints.contains(&endpoint)
    }
}

/// The failure that an answer is, if the policy wants its status tried again.
pub(super) fn failure_from_response(
    context: &RequestContext<'_>,
    response: &UpstreamResponse,
) -> Option<FailureKind> {
    let head = response.upstream.head()?;
    if response.is_unprocessed {
        return Some(FailureKind::RefusedStream);
    }
    let policy = &context.destination.policy.retry;
    let retry_after = classify::parse_retry_after(head, clock::wall_time);
    match response.grpc_status {
        Some(status) if head.status == 200 => {
            let trailers = response.upstream.trailers();
            let is_named = policy.grpc_codes & (1 << status) != 0;
            // A backend may say when, or that it should not be tried again (gRPC A6, "Pushback").
            let pushback = is_named
                .then(|| grpc::parse_retry_pushback(trailers.unwrap_or(&head.headers)))
                .flatten()?;
            // Without an answer begun the call has not run, for a status that the policy names.
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
        _ => (!response.is_upgrade && policy.codes.contains(head.status.as_u16()))
            .then_some(FailureKind::Status { retry_after }),
    }
}

/// Whether a call of gRPC is worth waiting for the end of, before its answer is begun towards the client: because it may fail there, and
/// would be tried again.
pub(super) fn may_retry_on_trailers(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    history: &AttemptHistory,
) -> bool {
    let policy = &context.destination.policy.retry;
    let has_retries_left = policy.mode == Mode::Enforce
        && policy.grpc_codes != 0
        && history.retries < policy.config.attempts;
    has_retries_left
        && request.is_grpc
        && (policy.config.retry_non_idempotent || request.is_idempotent())
        && request.downstream_attempt() == 1
}

/// Decides about a retry, and takes it out of the budget; the wait before it, or `None` to pass on what there is. A request that
/// retries holds one place among the parallel retries until it ends, however often it does.
pub(super) fn decide_retry(
    context: &RequestContext<'_>,
    client: &Client,
    body: &RequestBody,
    failure: FailureKind,
    history: &mut AttemptHistory,
    deadline: &Deadline,
    retry_guard: &mut Option<RetryGuard>,
) -> Option<Duration> {
    let destination = context.destination;
    let policy = &destination.policy;
    if policy.retry.mode == Mode::Off {
        return None;
    }
    let (now, request) = (clock::now(), client.request_view());
    let retry_context = RetryContext {
        failure,
        is_idempotent: request.is_idempotent(),
        is_body_replayable: body.is_replayable(),
        is_retried_by_downstream: request.downstream_attempt() > 1,
        retries: history.retries,
        transparent_retries: history.transparent_retries,
        // While the client is still sending there is no deadline yet; then nothing is waited for longer than a silent stream.
        time_left: deadline.time_left(now).min(if body.is_done() {
            Duration::MAX
        } else {
            policy.timeouts.stream_idle.unwrap_or(Duration::MAX)
        }),
    };
    let record_stop = |stop_reason| {
        destination.backend.metrics.record_retry_stop(stop_reason);
        let time_left_text = if retry_context.time_left == Duration::MAX {
            "no deadline".to_owned()
        } else {
            format!("{:.1?} are left", retry_context.time_left)
        };
        let evidence = format!(
            "{} of {} retries made and {} that never reached it, {time_left_text}, {} in the budget",
            retry_context.retries,
            policy.retry.config.attempts,
            retry_context.transparent_retries,
            destination.retry_budget.remaining(now)
        );
        context.decision_trace.record(Decision::NotRetried {
            cause: stop_reason.description(),
            evidence,
        });
        None
    };
    let (wait, is_transparent) = match policy.retry.config.decide(&retry_context, fastrand::f64()) {
        RetryDecision::Retry {
            wait,
            is_transparent,
        } => (wait, is_transparent),
        RetryDecision::Stop(reason) => return record_stop(retry_stop_from_reason(reason)),
    };
    if policy.retry.mode == Mode::Shadow {
        return record_stop(RetryStop::Shadow);
    }
    // A breaker that has just tripped would refuse the retry; what there is, is better than a refusal.
    if destination
        .breaker
        .as_ref()
        .is_some_and(|breaker| breaker.retry_after(now).is_some())
    {
        return record_stop(RetryStop::BreakerOpen);
    }
    match destination.withdraw_retry(retry_guard, now) {
        Ok(()) => {
            if is_transparent {
                history.transparent_retries += 1;
            } else {
                history.retries += 1;
            }
            destination.backend.metrics.retries.increment(1);
            context.decision_trace.record(Decision::Retried {
                wait,
                is_transparent,
                budget_remaining: destination.retry_budget.remaining(now),
            });
            Some(wait)
        }
        Err(RetryRejection::BudgetExhausted) => record_stop(RetryStop::BudgetExhausted),
        Err(RetryRejection::TooManyInFlight) => record_stop(RetryStop::TooManyInFlight),
    }
}

/// Clears an answer away that is not passed on, and keeps its connection if its end is near.
pub(super) async fn discard_response(
    context: &RequestContext<'_>,
    is_request_done: bool,
    response: UpstreamResponse,
) {
    let mut upstream = response.upstream;
    let read_to_end = async {
        let mut read_bytes = 0;
        while !upstream.is_body_done() && read_bytes <= MAX_DISCARDED_BYTES {
            match upstream.read().await {
                Ok(Some(chunk)) => read_bytes += chunk.len(),
                Ok(None) | Err(_) => break,
            }
        }
    };
    if clock::timeout(Some(DISCARD_TIMEOUT), read_to_end)
        .await
        .is_ok()
    {
        let now = clock::now();
        // A call of gRPC says at its end how it went, whoever reads it.
        if let (Some(reporter), Some(status)) = (
            response.pending_reporter,
            upstream.trailers().and_then(grpc::parse_status),
        ) {
            reporter.report(grpc::verdict_from_status(status), None, now);
        }
        upstream
            .release(
                context.worker,
                is_request_done && response.accepts_body,
                now,
            )
            .await;
    }
}

fn retry_stop_from_reason(reason: RetryStopReason) -> RetryStop {
    match reason {
        RetryStopReason::NotTriggered => RetryStop::NotTriggered,
        RetryStopReason::NotIdempotent => RetryStop::NotIdempotent,
        RetryStopReason::RetriedByDownstream => RetryStop::AlreadyRetried,
        RetryStopReason::BodyNotReplayable => RetryStop::BodyNotReplayable,
        RetryStopReason::AttemptsExhausted => RetryStop::AttemptsExhausted,
        RetryStopReason::NoTimeLeft => RetryStop::DeadlineTooClose,
    }
}

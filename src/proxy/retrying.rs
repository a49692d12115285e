//! Whether and when an attempt is made again: the pure decision, the budget, and the clearing away of the failed one.

use std::time::Duration;

use super::{
    asked::Asked, attempt::Answered, classify, client::Client, deadline::Deadline, grpc,
    request_body::RequestBody, serve::Exchange,
};
use crate::{
    clock,
    resilience::{
        Mode,
        retry::{Failure, Situation, StopReason, Verdict},
    },
    state::budget::{NoRetry, RetryGuard},
    telemetry::{decisions::Step, metrics::RetryStop},
};

/// An answer that is thrown away for a retry is read to its end up to this, so that its connection can be used again.
const MAX_DISCARDED: usize = 64 << 10;

/// And for so long.
const DISCARD_TIME: Duration = Duration::from_millis(25);

/// What was tried so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    endpoints: Vec<usize>,
    retries: u32,
    transparent: u32,
}

impl Tries {
    pub(super) fn note(&mut self, endpoint: usize) {
        if !self.contains(endpoint) {
            self.endpoints.push(endpoint);
        }
    }

    /// Whether nothing was tried yet.
    pub(super) fn is_first(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many endpoints were tried.
    pub(super) fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// Which attempt the next one is of those that the backend can have seen, from 1.
    pub(super) fn number(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// Another one goes out besides.
    pub(super) fn hedge(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    pub(super) fn contains(&self, endpoint: usize) -> bool {
        self.endpoints.contains(&endpoint)
    }
}

/// The failure that an answer is, if the policy wants its status tried again.
pub(super) fn status_failure(exchange: &Exchange<'_>, answered: &Answered) -> Option<Failure> {
    let head = answered.upstream.head()?;
    if answered.is_unprocessed {
        return Some(Failure::Refused);
    }
    let policy = &exchange.destination.policy.retry;
    let retry_after = classify::retry_after(head, clock::wall);
    match answered.grpc_status {
        Some(status) if head.status == 200 => {
            let trailers = answered.upstream.trailers();
            let is_named = policy.grpc_codes & (1 << status) != 0;
            // A backend may say when, or that it should not be tried again (gRPC A6, "Pushback").
            let wait = is_named
                .then(|| grpc::pushback(trailers.unwrap_or(&head.headers)))
                .flatten()?;
            // Without an answer begun the call has not run, for a status that the policy names.
            Some(if grpc::status(&head.headers).is_some() {
                Failure::Declined { retry_after: wait }
            } else {
                Failure::Status { retry_after: wait }
            })
        }
        _ => (!answered.is_upgrade && policy.codes.contains(head.status.as_u16()))
            .then_some(Failure::Status { retry_after }),
    }
}

/// Whether a call of gRPC is worth waiting for the end of, before its answer is begun towards the client: because it may fail there, and
/// would be tried again.
pub(super) fn may_repeat_by_trailers(
    exchange: &Exchange<'_>,
    asked: &Asked<'_>,
    tries: &Tries,
) -> bool {
    let policy = &exchange.destination.policy.retry;
    let has_left = policy.mode == Mode::Enforce
        && policy.grpc_codes != 0
        && tries.retries < policy.config.attempts;
    has_left
        && asked.is_grpc
        && (policy.config.retry_non_idempotent || asked.is_idempotent())
        && asked.attempt() == 1
}

/// Decides about a retry, and takes it out of the budget; the wait before it, or `None` to pass on what there is. A request that
/// retries holds one place among the parallel retries until it ends, however often it does.
pub(super) fn consider(
    exchange: &Exchange<'_>,
    client: &Client,
    body: &RequestBody,
    failure: Failure,
    tries: &mut Tries,
    deadline: &Deadline,
    held: &mut Option<RetryGuard>,
) -> Option<Duration> {
    let destination = exchange.destination;
    let policy = &destination.policy;
    if policy.retry.mode == Mode::Off {
        return None;
    }
    let (now, asked) = (clock::now(), client.asked());
    let situation = Situation {
        failure,
        is_idempotent: asked.is_idempotent(),
        is_body_replayable: body.is_replayable(),
        is_retry: asked.attempt() > 1,
        retries: tries.retries,
        transparent_retries: tries.transparent,
        // While the client is still sending there is no deadline yet; then nothing is waited for longer than a silent stream.
        time_left: deadline.time_left(now).min(if body.is_done() {
            Duration::MAX
        } else {
            policy.timeouts.stream_idle.unwrap_or(Duration::MAX)
        }),
    };
    let stop = |why| {
        destination.backend.metrics.not_repeated(why);
        let time = if situation.time_left == Duration::MAX {
            "no deadline".to_owned()
        } else {
            format!("{:.1?} are left", situation.time_left)
        };
        let numbers = format!(
            "{} of {} retries made and {} that never reached it, {time}, {} in the budget",
            situation.retries,
            policy.retry.config.attempts,
            situation.transparent_retries,
            destination.budget.remaining(now)
        );
        exchange.notes.push(Step::NotRetried {
            why: why.words(),
            numbers,
        });
        None
    };
    let (wait, is_transparent) = match policy.retry.config.decide(&situation, fastrand::f64()) {
        Verdict::Retry {
            wait,
            is_transparent,
        } => (wait, is_transparent),
        Verdict::Stop(reason) => return stop(stopped(reason)),
    };
    if policy.retry.mode == Mode::Shadow {
        return stop(RetryStop::Shadow);
    }
    // A breaker that has just tripped would refuse the retry; what there is, is better than a refusal.
    if destination
        .breaker
        .as_ref()
        .is_some_and(|breaker| breaker.refuses_for(now).is_some())
    {
        return stop(RetryStop::BreakerOpen);
    }
    match destination.withdraw_retry(held, now) {
        Ok(()) => {
            if is_transparent {
                tries.transparent += 1;
            } else {
                tries.retries += 1;
            }
            destination.backend.metrics.retries.increment(1);
            exchange.notes.push(Step::Retried {
                wait,
                is_transparent,
                left: destination.budget.remaining(now),
            });
            Some(wait)
        }
        Err(NoRetry::BudgetSpent) => stop(RetryStop::BudgetSpent),
        Err(NoRetry::TooManyInFlight) => stop(RetryStop::TooManyInFlight),
    }
}

/// Clears an answer away that is not passed on, and keeps its connection if its end is near.
pub(super) async fn discard(exchange: &Exchange<'_>, is_request_done: bool, answered: Answered) {
    let mut upstream = answered.upstream;
    let drain = async {
        let mut read = 0;
        while !upstream.is_body_done() && read <= MAX_DISCARDED {
            match upstream.read().await {
                Ok(Some(chunk)) => read += chunk.len(),
                Ok(None) | Err(_) => break,
            }
        }
    };
    if clock::within(Some(DISCARD_TIME), drain).await.is_ok() {
        let now = clock::now();
        // A call of gRPC says at its end how it went, whoever reads it.
        if let (Some(unsettled), Some(status)) = (
            answered.unsettled,
            upstream.trailers().and_then(grpc::status),
        ) {
            unsettled.settle(grpc::judge(status), None, now);
        }
        upstream
            .release(
                exchange.worker,
                is_request_done && answered.is_listening,
                now,
            )
            .await;
    }
}

fn stopped(reason: StopReason) -> RetryStop {
    match reason {
        StopReason::NotTriggered => RetryStop::NotTriggered,
        StopReason::NotIdempotent => RetryStop::NotIdempotent,
        StopReason::AlreadyRetried => RetryStop::AlreadyRetried,
        StopReason::BodyNotReplayable => RetryStop::BodyNotReplayable,
        StopReason::AttemptsExhausted => RetryStop::AttemptsExhausted,
        StopReason::NoTimeLeft => RetryStop::NoTimeLeft,
    }
}

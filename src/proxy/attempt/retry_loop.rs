//! The attempts of a request: the first attempt, its retries and its reselections, until a
//! response can be relayed.
//!
//! The loop decides only what follows an outcome. Hedged requests run in `hedging` instead.

use std::time::{Duration, Instant};

use crate::{
    clock,
    proxy::{
        attempt::{
            discard, hedging,
            history::AttemptSeries,
            outcome::{
                AttemptError, UpstreamResponse, connection_limit_rejection, transport_rejection,
            },
            request_source::RequestSource,
            reselection, retry,
            single::{Attempt, ResponseHandover},
        },
        downstream::task::RequestTask,
        request::{classify::TransportError, deadline::Deadline, rejection::Rejection},
    },
    state::policies::concurrency_limit::ConcurrencyPermit,
    telemetry::decision::Decision,
};

/// Sends an admitted request until there is a response to relay.
///
/// The request timeout of the policy starts at `started_at`, or once the client has sent the
/// whole request.
///
/// # Errors
/// The rejection that the client receives instead of a response.
pub(crate) async fn send(
    task: &mut RequestTask<'_>,
    started_at: Instant,
) -> Result<UpstreamResponse, Rejection> {
    let mut deadline = Deadline::new(
        task.context.destination.policy.timeouts.request,
        &task.request(),
        task.record.started_at,
    );
    if task.body.is_done() {
        let completed_at = task.record.request_completed_at;
        deadline.start(completed_at.unwrap_or(task.record.started_at), started_at);
    }
    let permit = task.permits.concurrency.as_ref();
    let sampler = permit.and_then(ConcurrencyPermit::sampler);
    let mut series = AttemptSeries::new(deadline, sampler);
    let result = run_attempts(task, &mut series).await;
    let completed_at = task.record.request_completed_at;
    task.record.request_completed_at = completed_at.or(series.deadline.started_at());
    if result.is_err() {
        task.permits.retry = None;
    }
    if let Some(permit) = &mut task.permits.concurrency {
        permit.record_response_start();
    }
    result
}

async fn run_attempts(
    task: &mut RequestTask<'_>,
    series: &mut AttemptSeries,
) -> Result<UpstreamResponse, Rejection> {
    let context = task.context;
    context
        .destination
        .retry_budget
        .deposit(task.record.started_at);
    if let Some(plan) = hedging::plan(task, task.record.started_at) {
        // Boxing keeps the future of every other request small.
        return Box::pin(hedging::run_race(task, &plan, series)).await;
    }
    loop {
        let tried_before = series.history.endpoint_count();
        let attempt = Attempt::begin(context, &task.client.request_view(), series, task.record)?;
        let handover = if retry::may_retry_on_trailers(&context, &task.request(), &series.history) {
            ResponseHandover::AtFirstChunk
        } else {
            ResponseHandover::AtHead
        };
        let started_at = attempt.started_at;
        let mut source = RequestSource::Client(task.client, &mut task.body);
        let result = attempt
            .run(&mut source, &mut series.deadline, handover)
            .await;
        let reselected =
            reselection::reselect_if_unprocessed(task, &series.history, tried_before, result).await;
        let outcome = match reselected {
            None => continue,
            Some(Ok(response)) => Ok(response),
            Some(Err(AttemptError::Unprocessed(response))) => Ok(*response),
            Some(Err(AttemptError::Transport(error))) => Err(error),
            // Another endpoint may have a free connection. If this endpoint was selected again,
            // no untried endpoint is left.
            Some(Err(AttemptError::ConnectionLimitReached))
                if reselection::has_untried_endpoint(&context, &series.history, tried_before) =>
            {
                series.is_replacement = true;
                continue;
            }
            Some(Err(AttemptError::ConnectionLimitReached)) => {
                let endpoint = task.record.endpoint.as_ref();
                return Err(connection_limit_rejection(&context, endpoint));
            }
            Some(Err(AttemptError::Rejected(rejection))) => return Err(rejection),
        };
        match next_step(task, series, outcome, started_at) {
            NextStep::Finish(result) => return result,
            NextStep::Retry { delay, discarded } => {
                // Boxing keeps the future of every request without a retry small.
                if let Some(response) = discarded {
                    Box::pin(discard::discard_response(task, response)).await;
                }
                Box::pin(wait_before_retry(task, delay)).await?;
            }
        }
    }
}

/// What follows an attempt.
enum NextStep {
    /// The request ends with this result.
    Finish(Result<UpstreamResponse, Rejection>),
    /// Another attempt follows after the delay.
    Retry {
        delay: Duration,
        /// The response of the failed attempt, if it had one.
        discarded: Option<UpstreamResponse>,
    },
}

fn next_step(
    task: &mut RequestTask<'_>,
    series: &mut AttemptSeries,
    outcome: Result<UpstreamResponse, TransportError>,
    started_at: Instant,
) -> NextStep {
    let context = task.context;
    let failure = match &outcome {
        Ok(response) => retry::failure_from_response(&context, response),
        Err(error) => Some(error.retry_failure()),
    };
    if failure.is_some() {
        record_failure(task, &outcome, started_at);
    }
    let delay = failure.and_then(|failure| retry::decide_retry(task, series, failure));
    match (delay, outcome) {
        (Some(delay), outcome) => NextStep::Retry {
            delay,
            discarded: outcome.ok(),
        },
        (None, Ok(response)) => {
            if series.history.attempt_number() == 1 {
                hedging::record_shadow_hedge(task, started_at);
            }
            NextStep::Finish(Ok(response))
        }
        (None, Err(error)) => {
            let endpoint = task.record.endpoint_label();
            NextStep::Finish(Err(transport_rejection(error, endpoint)))
        }
    }
}

fn record_failure(
    task: &RequestTask<'_>,
    outcome: &Result<UpstreamResponse, TransportError>,
    started_at: Instant,
) {
    let cause = outcome.as_ref().map_or_else(
        |error| error.reason().token().to_owned(),
        UpstreamResponse::status_text,
    );
    task.context.decision_trace.record(Decision::AttemptFailed {
        attempt: task.record.attempts,
        endpoint: task.record.endpoint_label(),
        cause,
        duration: clock::now().saturating_duration_since(started_at),
    });
}

/// Waits before a retry, unless the client closes its connection meanwhile.
async fn wait_before_retry(task: &mut RequestTask<'_>, delay: Duration) -> Result<(), Rejection> {
    if delay.is_zero() {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = clock::sleep(delay) => Ok(()),
        reason = task.client.closed(), if task.body.is_done() => Err(Rejection::fatal(reason)),
    }
}

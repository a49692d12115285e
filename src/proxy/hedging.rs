//! Asking more than one endpoint at once, and taking the answer that comes first.
//!
//! Each request after the first is taken out of the retry budget. Those that are not needed are dropped: their connections close, their streams are
//! reset, and their guards settle as cancelled. What is hedged is not retried besides; a failure makes the next request go out at once.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use crate::{
    clock,
    policy::snapshot::HedgingSpec,
    proxy::{
        asker::{BufferedRequest, RequestSource},
        attempt::{
            Attempt, AttemptError, UpstreamResponse, connection_limit_rejection, fatal_rejection,
            transport_rejection,
        },
        client::Client,
        deadline::Deadline,
        headers,
        record::RequestRecord,
        rejection::Rejection,
        repicking,
        request_body::RequestBody,
        retrying::AttemptHistory,
        serve::RequestContext,
    },
    resilience::Mode,
    state::{
        policies::{hedge::HedgeState, retry_budget::RetryGuard},
        topology::endpoint::EndpointState,
    },
    telemetry::{decision_log::Decision, metrics::HedgeOutcome},
};

/// A request that is hedged.
pub(super) struct HedgePlan<'e> {
    spec: &'e HedgingSpec,
    state: &'e HedgeState,
    delay: Duration,
    buffered_request: BufferedRequest,
}

/// Whether a request is hedged: the policy acts, it is idempotent, has no body, and it is known how late is late.
pub(super) fn plan<'e>(
    context: &'e RequestContext<'_>,
    client: &Client,
    body: &RequestBody,
    now: Instant,
) -> Option<HedgePlan<'e>> {
    let spec = context
        .destination
        .policy
        .hedging
        .as_ref()
        .filter(|spec| spec.mode == Mode::Enforce)?;
    let state = context.destination.hedge.as_deref()?;
    if !is_hedgeable(client, body) {
        return None;
    }
    Some(HedgePlan {
        spec,
        state,
        delay: state.delay(now)?,
        buffered_request: BufferedRequest::from_client(client, body)?,
    })
}

/// Whether a request may be asked twice at once.
fn is_hedgeable(client: &Client, body: &RequestBody) -> bool {
    let request = client.request_view();
    request.is_idempotent()
        && body.is_done()
        && body.received_bytes() == 0
        && request.downstream_attempt() == 1
        && headers::requested_upgrade(&request).is_none()
}

/// Counts what shadow mode would have asked again, now that an attempt that began then was answered.
pub(super) fn record_shadow_hedge(
    context: &RequestContext<'_>,
    client: &Client,
    body: &RequestBody,
    started_at: Instant,
) {
    let destination = context.destination;
    let (Some(spec), Some(state)) = (&destination.policy.hedging, &destination.hedge) else {
        return;
    };
    if spec.mode != Mode::Shadow || !is_hedgeable(client, body) {
        return;
    }
    let now = clock::now();
    if state
        .delay(now)
        .is_some_and(|delay| now.saturating_duration_since(started_at) > delay)
    {
        destination
            .backend
            .metrics
            .record_hedge(HedgeOutcome::Shadow);
    }
}

type AttemptFuture<'r> =
    Pin<Box<dyn Future<Output = Result<UpstreamResponse, AttemptError>> + Send + 'r>>;

/// A request that is out.
struct HedgedAttempt<'r> {
    endpoint: Arc<EndpointState>,
    started_at: Instant,
    /// Counted from 1.
    attempt_number: u32,
    is_first: bool,
    future: AttemptFuture<'r>,
}

/// What came of one that is no answer to pass on while there may be another.
enum NonFatalResult {
    Response(Arc<EndpointState>, Box<UpstreamResponse>),
    Failed(Arc<EndpointState>, AttemptError),
    /// None could be made.
    NotStarted(Rejection),
}

/// How far a race is.
#[derive(Default)]
struct HedgeRace {
    history: AttemptHistory,
    retry_guard: Option<RetryGuard>,
    non_fatal_result: Option<NonFatalResult>,
    /// Requests that count.
    sent: u32,
    /// Whether no more are to be sent.
    is_exhausted: bool,
    /// How many endpoints had been asked before the last one.
    tried_before: usize,
    /// The next one goes out in the place of one that was not looked at; whether that was the first.
    replacement_is_first: Option<bool>,
}

/// Asks until there is an answer to pass on, or none to be had.
pub(super) async fn run_race(
    context: &RequestContext<'_>,
    client: &mut Client,
    plan: &HedgePlan<'_>,
    deadline: Deadline,
    record: &mut RequestRecord,
) -> Result<UpstreamResponse, Rejection> {
    let mut race = HedgeRace::default();
    let mut attempts: Vec<HedgedAttempt<'_>> = Vec::with_capacity(2);
    let mut is_due = true;
    loop {
        let can_start_next = !race.is_exhausted && race.sent < plan.spec.config.max_attempts.get();
        if is_due && can_start_next {
            is_due = false;
            attempts.extend(race.start_next(context, plan, deadline, record));
            continue;
        }
        if attempts.is_empty() {
            return conclude(context, race.non_fatal_result, race.retry_guard, record);
        }
        let hedge_delay = async {
            if can_start_next {
                clock::sleep(plan.delay).await
            } else {
                std::future::pending().await
            }
        };
        let (index, result) = tokio::select! {
            biased;
            done = first_completed(&mut attempts) => done,
            () = hedge_delay => {
                is_due = true;
                continue;
            }
            reason = client.closed() => return Err(fatal_rejection(reason)),
        };
        let hedged_attempt = attempts.swap_remove(index);
        if let Some(cause) = failure_cause(plan.spec, &result) {
            let duration = clock::now().saturating_duration_since(hedged_attempt.started_at);
            context.decision_trace.record(Decision::AttemptFailed {
                attempt: hedged_attempt.attempt_number,
                endpoint: hedged_attempt.endpoint.label.clone(),
                cause,
                duration,
            });
        }
        match result {
            Ok(response) if !is_non_fatal(plan.spec, &response) => {
                record_win(context, plan, &hedged_attempt, &attempts);
                record.endpoint = Some(hedged_attempt.endpoint);
                return Ok(UpstreamResponse {
                    _retry_guard: race.retry_guard,
                    ..response
                });
            }
            Err(AttemptError::Rejected(rejection)) if rejection.is_fatal => return Err(rejection),
            Err(AttemptError::Unprocessed(response)) => {
                race.record_unprocessed(context, hedged_attempt, response)
            }
            Ok(response) => {
                race.non_fatal_result = Some(NonFatalResult::Response(
                    hedged_attempt.endpoint,
                    Box::new(response),
                ))
            }
            Err(error) if matches!(race.non_fatal_result, Some(NonFatalResult::Response(..))) => {
                drop(error)
            }
            Err(error) => {
                race.non_fatal_result = Some(NonFatalResult::Failed(hedged_attempt.endpoint, error))
            }
        }
        is_due = true;
    }
}

impl HedgeRace {
    /// Sends one more, if that can be.
    fn start_next<'r>(
        &mut self,
        context: &'r RequestContext<'r>,
        plan: &'r HedgePlan<'_>,
        deadline: Deadline,
        record: &mut RequestRecord,
    ) -> Option<HedgedAttempt<'r>> {
        self.tried_before = self.history.endpoint_count();
        let asked = start_attempt(
            context,
            plan,
            deadline,
            &mut self.history,
            self.replacement_is_first.take(),
            &mut self.retry_guard,
            record,
        );
        match asked {
            Ok(Some(hedged_attempt)) => {
                self.sent += 1;
                return Some(hedged_attempt);
            }
            Ok(None) => {}
            Err(rejection) => {
                _ = self
                    .non_fatal_result
                    .get_or_insert(NonFatalResult::NotStarted(rejection))
            }
        }
        self.is_exhausted = true;
        None
    }

    /// One was not looked at. It does not count, as long as there are endpoints that were not asked.
    fn record_unprocessed(
        &mut self,
        context: &RequestContext<'_>,
        hedged_attempt: HedgedAttempt<'_>,
        response: Box<UpstreamResponse>,
    ) {
        self.non_fatal_result
            .get_or_insert(NonFatalResult::Response(hedged_attempt.endpoint, response));
        if repicking::has_untried_endpoint(context, &self.history, self.tried_before) {
            self.sent -= 1;
            self.replacement_is_first = Some(hedged_attempt.is_first);
            context.destination.backend.metrics.reselected.increment(1);
        }
    }
}

/// One has its answer; the others took at least as long as they were waited for.
fn record_win(
    context: &RequestContext<'_>,
    plan: &HedgePlan<'_>,
    winner: &HedgedAttempt<'_>,
    losers: &[HedgedAttempt<'_>],
) {
    if !winner.is_first {
        context
            .destination
            .backend
            .metrics
            .record_hedge(HedgeOutcome::Won);
        context.decision_trace.record(Decision::HedgeWon {
            endpoint: winner.endpoint.label.clone(),
        });
    }
    let now = clock::now();
    losers.iter().for_each(|loser| {
        plan.state
            .record_latency(now.saturating_duration_since(loser.started_at), now)
    });
}

/// Sends one more; nothing if the budget has none.
fn start_attempt<'r>(
    context: &'r RequestContext<'r>,
    plan: &'r HedgePlan<'_>,
    mut deadline: Deadline,
    history: &mut AttemptHistory,
    replacement_is_first: Option<bool>,
    retry_guard: &mut Option<RetryGuard>,
    record: &mut RequestRecord,
) -> Result<Option<HedgedAttempt<'r>>, Rejection> {
    let metrics = &context.destination.backend.metrics;
    let is_first = replacement_is_first.unwrap_or_else(|| history.is_first_attempt());
    if !is_first
        && replacement_is_first.is_none()
        && context
            .destination
            .withdraw_retry(retry_guard, clock::now())
            .is_err()
    {
        metrics.record_hedge(HedgeOutcome::BudgetExhausted);
        context.decision_trace.record(Decision::NotRetried {
            cause: "the retry budget has no room for a second request",
            evidence: String::new(),
        });
        return Ok(None);
    }
    if !is_first && replacement_is_first.is_none() {
        history.record_hedge();
    }
    let attempt = Attempt::begin(
        context,
        &plan.buffered_request.request_view(),
        history,
        &deadline,
        record,
    )?;
    if !is_first && replacement_is_first.is_none() {
        metrics.record_hedge(HedgeOutcome::Sent);
        context.decision_trace.record(Decision::Hedged {
            attempt: record.attempts,
            endpoint: attempt.endpoint.label.clone(),
            delay: plan.delay,
        });
    }
    let (endpoint, started_at) = (attempt.endpoint.clone(), attempt.started_at);
    let future = Box::pin(async move {
        attempt
            .run(
                &mut RequestSource::Replay(&plan.buffered_request),
                &mut deadline,
            )
            .await
    });
    Ok(Some(HedgedAttempt {
        endpoint,
        started_at,
        attempt_number: record.attempts,
        is_first,
        future,
    }))
}

async fn first_completed(
    attempts: &mut [HedgedAttempt<'_>],
) -> (usize, Result<UpstreamResponse, AttemptError>) {
    std::future::poll_fn(|context| {
        let done =
            attempts.iter_mut().enumerate().find_map(
                |(index, hedged_attempt)| match hedged_attempt.future.as_mut().poll(context) {
                    Poll::Ready(result) => Some((index, result)),
                    Poll::Pending => None,
                },
            );
        done.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// How one failed that is no answer to pass on, if it did.
fn failure_cause(
    spec: &HedgingSpec,
    result: &Result<UpstreamResponse, AttemptError>,
) -> Option<String> {
    match result {
        Ok(response) => is_non_fatal(spec, response).then(|| response.status_text()),
        Err(AttemptError::Transport(transport_error)) => {
            Some(transport_error.reason().token().to_owned())
        }
        Err(AttemptError::Unprocessed(response)) => {
            Some(format!("{}: it is leaving or new", response.status_text()))
        }
        Err(AttemptError::ConnectionLimitReached) => {
            Some("all its connections are busy".to_owned())
        }
        Err(AttemptError::Rejected(rejection)) => Some(rejection.reason.token().to_owned()),
    }
}

fn is_non_fatal(spec: &HedgingSpec, response: &UpstreamResponse) -> bool {
    response
        .upstream
        .head()
        .is_some_and(|head| spec.non_fatal_codes.contains(head.status.as_u16()))
}

/// All have failed: an answer of the app's is better than none.
fn conclude(
    context: &RequestContext<'_>,
    non_fatal_result: Option<NonFatalResult>,
    retry_guard: Option<RetryGuard>,
    record: &mut RequestRecord,
) -> Result<UpstreamResponse, Rejection> {
    match non_fatal_result {
        Some(NonFatalResult::Response(endpoint, response)) => {
            record.endpoint = Some(endpoint);
            Ok(UpstreamResponse {
                _retry_guard: retry_guard,
                ..*response
            })
        }
        Some(NonFatalResult::Failed(endpoint, error)) => {
            record.endpoint = Some(endpoint);
            Err(match error {
                AttemptError::Transport(transport_error) => {
                    transport_rejection(record, transport_error)
                }
                // An answer is never kept as a failure.
                AttemptError::ConnectionLimitReached | AttemptError::Unprocessed(_) => {
                    connection_limit_rejection(context, record)
                }
                AttemptError::Rejected(rejection) => rejection,
            })
        }
        Some(NonFatalResult::NotStarted(rejection)) => Err(rejection),
        None => Err(Rejection::from_reason(
            crate::telemetry::reason::Reason::InternalError,
        )),
    }
}

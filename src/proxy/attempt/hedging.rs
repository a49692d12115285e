//! Hedging: if a response is late, the request is also sent to a second endpoint, and the first
//! good response wins.
//!
//! Every further attempt except a replacement is withdrawn from the retry budget. Losers are
//! dropped: their connections close, their streams are reset, and their guards settle as
//! cancelled. A hedged request has no retries in addition. A failed attempt starts the next
//! attempt at once.
//!
//! The module does not compute the delay. `HedgeState` derives it from recent latencies.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use crate::{
    clock,
    policy::sections::hedging::HedgingSpec,
    proxy::{
        attempt::{
            history::AttemptSeries,
            outcome::{
                AttemptError, UpstreamResponse, connection_limit_rejection, transport_rejection,
            },
            request_source::{BufferedRequest, RequestSource},
            reselection,
            single::{Attempt, ResponseHandover},
        },
        downstream::task::RequestTask,
        request::{context::RequestContext, record::RequestRecord, rejection::Rejection},
    },
    resilience::Mode,
    state::{
        policies::{hedge::HedgeState, retry_budget::RetryGuard},
        topology::endpoint::EndpointState,
    },
    telemetry::{backend_metrics::HedgeOutcome, decision::Decision, reason::Reason},
};

/// Everything that a race needs and that does not change during it.
pub(crate) struct HedgePlan<'r> {
    spec: &'r HedgingSpec,
    state: &'r HedgeState,
    /// Time to wait for a response before the next attempt starts.
    delay: Duration,
    buffered_request: BufferedRequest,
}

/// Plans the hedging of a request.
///
/// Returns `None` unless the policy is enforced, the request is idempotent and has no body, and
/// the delay is known.
pub(crate) fn plan<'r>(task: &RequestTask<'r>, now: Instant) -> Option<HedgePlan<'r>> {
    let destination = task.context.destination;
    let spec = destination.policy.hedging.as_ref();
    let spec = spec.filter(|spec| spec.mode == Mode::Enforce)?;
    let state = destination.policy_states.hedge.as_deref()?;
    if !is_hedgeable(task) {
        return None;
    }
    Some(HedgePlan {
        spec,
        state,
        delay: state.delay(now)?,
        buffered_request: BufferedRequest::from_client(task.client, &task.body)?,
    })
}

/// Returns whether two endpoints may process the request at the same time.
fn is_hedgeable(task: &RequestTask<'_>) -> bool {
    let request = task.request();
    request.is_idempotent()
        && task.body.is_done()
        && task.body.received_bytes() == 0
        && request.downstream_attempt() == 1
        && request.requested_upgrade().is_none()
}

/// Counts a request that shadow mode would have hedged. Its first attempt began at `started_at`.
pub(crate) fn record_shadow_hedge(task: &RequestTask<'_>, started_at: Instant) {
    let destination = task.context.destination;
    let (Some(spec), Some(state)) = (
        &destination.policy.hedging,
        &destination.policy_states.hedge,
    ) else {
        return;
    };
    if spec.mode != Mode::Shadow || !is_hedgeable(task) {
        return;
    }
    let now = clock::now();
    let elapsed = now.saturating_duration_since(started_at);
    if state.delay(now).is_some_and(|delay| elapsed > delay) {
        let metrics = &destination.backend.metrics;
        metrics.record_hedge(HedgeOutcome::Shadow);
    }
}

type AttemptFuture<'p> =
    Pin<Box<dyn Future<Output = Result<UpstreamResponse, AttemptError>> + Send + 'p>>;

/// An attempt in flight.
struct HedgedAttempt<'p> {
    endpoint: Arc<EndpointState>,
    started_at: Instant,
    /// Attempt number in the access log, from 1.
    number: u32,
    kind: AttemptKind,
    future: AttemptFuture<'p>,
}

/// Why an attempt of a race is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttemptKind {
    /// The first request of the race, which is no hedge.
    First,
    /// A further attempt, because no good response has arrived in time.
    Hedge,
    /// An attempt at another endpoint, because one did not process the request. It is not
    /// withdrawn from the retry budget.
    Replacement {
        /// Whether it replaces the first attempt.
        of_first: bool,
    },
}

/// The best result so far among those that do not end the race.
enum NonFatalResult {
    Response(Arc<EndpointState>, Box<UpstreamResponse>),
    Failed(Arc<EndpointState>, AttemptError),
    /// No attempt could be started.
    NotStarted(Rejection),
}

/// Progress of a race. The attempts in flight are stored separately, because they borrow the
/// plan.
struct HedgeRace<'s> {
    series: &'s mut AttemptSeries,
    non_fatal_result: Option<NonFatalResult>,
    /// Attempts that count against the maximum: those started, without those replaced because
    /// their endpoint did not process them.
    counted: u32,
    /// Whether no further attempt can be started.
    is_exhausted: bool,
    /// The number of endpoints that were selected before the last attempt.
    tried_before: usize,
    /// The kind of the next attempt.
    next_kind: AttemptKind,
}

/// Runs attempts until there is a response to relay, or no further attempt is possible.
///
/// # Errors
/// The rejection that the client receives instead of a response.
pub(crate) async fn run_race(
    task: &mut RequestTask<'_>,
    plan: &HedgePlan<'_>,
    series: &mut AttemptSeries,
) -> Result<UpstreamResponse, Rejection> {
    let context = task.context;
    let mut race = HedgeRace::new(series);
    let mut attempts: Vec<HedgedAttempt<'_>> = Vec::with_capacity(2);
    let mut is_due = true;
    loop {
        let can_start_next = race.can_start_next(plan);
        if is_due && can_start_next {
            is_due = false;
            let (record, retry_guard) = (&mut *task.record, &mut task.permits.retry);
            attempts.extend(race.start_next(context, plan, record, retry_guard));
            continue;
        }
        if attempts.is_empty() {
            return conclude(&context, race.non_fatal_result, task.record);
        }
        let hedge_delay = async {
            if can_start_next {
                clock::sleep(plan.delay).await;
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
            reason = task.client.closed() => return Err(Rejection::fatal(reason)),
        };
        let attempt = attempts.swap_remove(index);
        record_failure(&context, plan.spec, &attempt, &result);
        match result {
            Ok(response) if !is_non_fatal(plan.spec, &response) => {
                record_win(&context, plan, &attempt, &attempts);
                task.record.endpoint = Some(attempt.endpoint);
                return Ok(response);
            }
            Err(AttemptError::Rejected(rejection)) if rejection.is_fatal => return Err(rejection),
            result => race.record_non_fatal(&context, attempt, result),
        }
        is_due = true;
    }
}

impl<'s> HedgeRace<'s> {
    fn new(series: &'s mut AttemptSeries) -> Self {
        Self {
            series,
            non_fatal_result: None,
            counted: 0,
            is_exhausted: false,
            tried_before: 0,
            next_kind: AttemptKind::First,
        }
    }

    fn can_start_next(&self, plan: &HedgePlan<'_>) -> bool {
        !self.is_exhausted && self.counted < plan.spec.config.max_attempts.get()
    }

    /// Starts the next attempt. If that fails, no further attempts are started.
    fn start_next<'p>(
        &mut self,
        context: RequestContext<'p>,
        plan: &'p HedgePlan<'_>,
        record: &mut RequestRecord,
        retry_guard: &mut Option<RetryGuard>,
    ) -> Option<HedgedAttempt<'p>> {
        self.tried_before = self.series.history.endpoint_count();
        let kind = std::mem::replace(&mut self.next_kind, AttemptKind::Hedge);
        if kind == AttemptKind::Hedge && !self.withdraw_hedge(&context, retry_guard) {
            self.is_exhausted = true;
            return None;
        }
        match start_attempt(context, plan, self.series, record, kind) {
            Ok(attempt) => {
                self.counted += 1;
                Some(attempt)
            }
            Err(rejection) => {
                self.non_fatal_result
                    .get_or_insert(NonFatalResult::NotStarted(rejection));
                self.is_exhausted = true;
                None
            }
        }
    }

    /// Withdraws a further attempt from the retry budget and returns whether the budget allows
    /// it.
    fn withdraw_hedge(
        &mut self,
        context: &RequestContext<'_>,
        retry_guard: &mut Option<RetryGuard>,
    ) -> bool {
        let destination = context.destination;
        if destination
            .withdraw_retry(retry_guard, clock::now())
            .is_ok()
        {
            self.series.history.record_retry(false);
            return true;
        }
        let metrics = &destination.backend.metrics;
        metrics.record_hedge(HedgeOutcome::BudgetExhausted);
        context.decision_trace.record(Decision::NotRetried {
            cause: "the retry budget has no room for a second request",
            evidence: String::new(),
        });
        false
    }

    /// Records a result that does not end the race. A response takes precedence over an error.
    fn record_non_fatal(
        &mut self,
        context: &RequestContext<'_>,
        attempt: HedgedAttempt<'_>,
        result: Result<UpstreamResponse, AttemptError>,
    ) {
        let endpoint = attempt.endpoint;
        match result {
            Err(AttemptError::Unprocessed(response)) => {
                self.non_fatal_result
                    .get_or_insert(NonFatalResult::Response(endpoint, response));
                let history = &self.series.history;
                if reselection::has_untried_endpoint(context, history, self.tried_before) {
                    self.counted -= 1;
                    self.next_kind = AttemptKind::Replacement {
                        of_first: attempt.kind.is_first(),
                    };
                    context.destination.backend.metrics.reselected.increment(1);
                }
            }
            Ok(response) => {
                self.non_fatal_result =
                    Some(NonFatalResult::Response(endpoint, Box::new(response)));
            }
            Err(_) if matches!(self.non_fatal_result, Some(NonFatalResult::Response(..))) => {}
            Err(error) => self.non_fatal_result = Some(NonFatalResult::Failed(endpoint, error)),
        }
    }
}

impl AttemptKind {
    fn is_first(self) -> bool {
        matches!(self, Self::First | Self::Replacement { of_first: true })
    }
}

/// Starts one attempt with its own copy of the deadline.
fn start_attempt<'p>(
    context: RequestContext<'p>,
    plan: &'p HedgePlan<'_>,
    series: &mut AttemptSeries,
    record: &mut RequestRecord,
    kind: AttemptKind,
) -> Result<HedgedAttempt<'p>, Rejection> {
    let mut deadline = series.deadline;
    let request = plan.buffered_request.request_view();
    let attempt = Attempt::begin(context, &request, series, record)?;
    if kind == AttemptKind::Hedge {
        let metrics = &context.destination.backend.metrics;
        metrics.record_hedge(HedgeOutcome::Sent);
        context.decision_trace.record(Decision::Hedged {
            attempt: record.attempts,
            endpoint: attempt.endpoint.label.clone(),
            delay: plan.delay,
        });
    }
    let (endpoint, started_at) = (attempt.endpoint.clone(), attempt.started_at);
    let future = Box::pin(async move {
        let mut source = RequestSource::Replay(&plan.buffered_request);
        attempt
            .run(&mut source, &mut deadline, ResponseHandover::AtHead)
            .await
    });
    Ok(HedgedAttempt {
        endpoint,
        started_at,
        number: record.attempts,
        kind,
        future,
    })
}

async fn first_completed(
    attempts: &mut [HedgedAttempt<'_>],
) -> (usize, Result<UpstreamResponse, AttemptError>) {
    std::future::poll_fn(|poll_context| {
        let mut attempts = attempts.iter_mut().enumerate();
        let done = attempts.find_map(|(index, attempt)| {
            match attempt.future.as_mut().poll(poll_context) {
                Poll::Ready(result) => Some((index, result)),
                Poll::Pending => None,
            }
        });
        done.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

fn is_non_fatal(spec: &HedgingSpec, response: &UpstreamResponse) -> bool {
    response
        .stream
        .head()
        .is_some_and(|head| spec.non_fatal_codes.contains(head.status.as_u16()))
}

fn record_failure(
    context: &RequestContext<'_>,
    spec: &HedgingSpec,
    attempt: &HedgedAttempt<'_>,
    result: &Result<UpstreamResponse, AttemptError>,
) {
    let cause = match result {
        Ok(response) if is_non_fatal(spec, response) => response.status_text(),
        Ok(_) => return,
        Err(AttemptError::Transport(error)) => error.reason().token().to_owned(),
        Err(AttemptError::Unprocessed(response)) => {
            format!("{}: it drains or warms up", response.status_text())
        }
        Err(AttemptError::ConnectionLimitReached) => "all its connections are busy".to_owned(),
        Err(AttemptError::Rejected(rejection)) => rejection.reason.token().to_owned(),
    };
    context.decision_trace.record(Decision::AttemptFailed {
        attempt: attempt.number,
        endpoint: attempt.endpoint.label.clone(),
        cause,
        duration: clock::now().saturating_duration_since(attempt.started_at),
    });
}

/// Records the winner, and the elapsed time of each loser as its latency.
///
/// A loser would have taken at least that long.
fn record_win(
    context: &RequestContext<'_>,
    plan: &HedgePlan<'_>,
    winner: &HedgedAttempt<'_>,
    losers: &[HedgedAttempt<'_>],
) {
    if !winner.kind.is_first() {
        let metrics = &context.destination.backend.metrics;
        metrics.record_hedge(HedgeOutcome::Won);
        context.decision_trace.record(Decision::HedgeWon {
            endpoint: winner.endpoint.label.clone(),
        });
    }
    let now = clock::now();
    for loser in losers {
        let latency = now.saturating_duration_since(loser.started_at);
        plan.state.record_latency(latency, now);
    }
}

/// Returns the result of a race without a winner. A response of the backend takes precedence
/// over a rejection.
fn conclude(
    context: &RequestContext<'_>,
    result: Option<NonFatalResult>,
    record: &mut RequestRecord,
) -> Result<UpstreamResponse, Rejection> {
    match result {
        Some(NonFatalResult::Response(endpoint, response)) => {
            record.endpoint = Some(endpoint);
            Ok(*response)
        }
        Some(NonFatalResult::Failed(endpoint, error)) => {
            record.endpoint = Some(endpoint);
            Err(match error {
                AttemptError::Transport(error) => {
                    transport_rejection(error, record.endpoint_label())
                }
                // An unprocessed response is recorded as a response, never as a failure.
                AttemptError::ConnectionLimitReached | AttemptError::Unprocessed(_) => {
                    connection_limit_rejection(context, record.endpoint.as_ref())
                }
                AttemptError::Rejected(rejection) => rejection,
            })
        }
        Some(NonFatalResult::NotStarted(rejection)) => Err(rejection),
        None => Err(Rejection::from_reason(Reason::InternalError)),
    }
}

//! Attempts at a backend, until there is an answer to pass on, or none to be had.
//!
//! One attempt picks an endpoint, asks its breaker, and asks the endpoint (`asking`). How it ended settles the breaker's permit; an
//! attempt that is given up because the client left gives its permit back unjudged, and one of gRPC is judged by its trailers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    clock,
    proxy::{
        asked::RequestView,
        asker::RequestSource,
        asking,
        classify::{self, AttemptVerdict, TransportError},
        client::Client,
        deadline::Deadline,
        grpc, hedging,
        parting::StreamShutdown,
        picking::{self, SelectedEndpoint},
        record::RequestRecord,
        rejection::{DEFAULT_RETRY_AFTER, Rejection},
        repicking,
        request_body::RequestBody,
        retrying::{self, AttemptHistory},
        serve::RequestContext,
        settlement::{self, AttemptReporter},
        signs,
        stale::ResponseCapture,
        upstream::Upstream,
    },
    state::{
        policies::{
            breaker::BreakerGuard, concurrency_limit::ConcurrencyPermit, retry_budget::RetryGuard,
        },
        topology::{
            endpoint::{EndpointGuard, EndpointState},
            outlier::AttemptObservation,
        },
    },
    telemetry::{decision_log::Decision, reason::Reason},
};

/// The head of an answer has come.
pub(super) struct UpstreamResponse {
    pub(super) upstream: Upstream,
    /// Whether both sides now speak something else than HTTP.
    pub(super) is_upgrade: bool,
    /// Whether it says that the request was not looked at.
    pub(super) is_unprocessed: bool,
    /// Whether the backend took all of the request that was written to it.
    pub(super) accepts_body: bool,
    /// What was read of its body already.
    pub(super) first_chunk: Option<Bytes>,
    /// How it may be ended when this instance leaves.
    pub(super) stream_shutdown: Option<StreamShutdown>,
    /// What is kept of it for the time when there is none.
    pub(super) capture: Option<Box<ResponseCapture>>,
    /// The status of gRPC, if it is known.
    pub(super) grpc_status: Option<u8>,
    /// Until when the client itself waits, if it has said so.
    pub(super) call_deadline: Option<Instant>,
    /// What the trailers will settle.
    pub(super) pending_reporter: Option<AttemptReporter>,
    /// Held until the answer is through.
    pub(super) in_flight_guard: Option<EndpointGuard>,
    pub(super) _retry_guard: Option<RetryGuard>,
}

impl UpstreamResponse {
    /// What was answered, for who reads why.
    pub(super) fn status_text(&self) -> String {
        match self.grpc_status {
            Some(status) => format!("grpc-status {status}"),
            None => self
                .upstream
                .head()
                .map(|head| head.status.as_u16().to_string())
                .unwrap_or_default(),
        }
    }
}

/// How an attempt failed.
pub(super) enum AttemptError {
    /// By the backend; it may be tried again.
    Transport(TransportError),
    /// Not by the backend: it says that it is leaving or new, and did not look at the request. What it says.
    Unprocessed(Box<UpstreamResponse>),
    /// All connections that the endpoint may have are busy; another may do.
    ConnectionLimitReached,
    /// By ourselves or the client; it is over.
    Rejected(Rejection),
}

impl From<TransportError> for AttemptError {
    fn from(transport_error: TransportError) -> Self {
        Self::Transport(transport_error)
    }
}

impl From<Rejection> for AttemptError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Asks a backend in the place that is held, whose limit learns from it.
pub(super) async fn send_with_permit(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    permit: &mut Option<ConcurrencyPermit>,
    started_at: Instant,
) -> Result<UpstreamResponse, Rejection> {
    let limit_sampler = permit.as_ref().and_then(ConcurrencyPermit::sampler);
    let response = send_with_deadline(
        &context.with_limit_sampler(limit_sampler.as_ref()),
        client,
        body,
        record,
        started_at,
    )
    .await;
    if let Some(permit) = permit {
        permit.record_response_start();
    }
    response
}

/// Makes attempts until one is answered with something to pass on. The policy's time begins at `began`, or when the client has sent all.
async fn send_with_deadline(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    started_at: Instant,
) -> Result<UpstreamResponse, Rejection> {
    let mut deadline = Deadline::new(
        context.destination.policy.timeouts.request,
        &client.request_view(),
        record.started_at,
    );
    if body.is_done() {
        deadline.start(
            record.request_completed_at.unwrap_or(record.started_at),
            started_at,
        );
    }
    let response = run_attempts(context, client, body, record, &mut deadline).await;
    record.request_completed_at = record.request_completed_at.or(deadline.started_at());
    response
}

async fn run_attempts(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    deadline: &mut Deadline,
) -> Result<UpstreamResponse, Rejection> {
    let mut history = AttemptHistory::default();
    let mut retry_guard: Option<RetryGuard> = None;
    context.destination.retry_budget.deposit(record.started_at);
    if let Some(hedge_plan) = hedging::plan(context, client, body, record.started_at) {
        // Boxed, as all that few requests need: it would make the future of every request larger.
        return Box::pin(hedging::run_race(
            context,
            client,
            &hedge_plan,
            *deadline,
            record,
        ))
        .await;
    }
    loop {
        let tried_before = history.endpoint_count();
        let request = client.request_view();
        let attempt = Attempt::begin(context, &request, &mut history, deadline, record)?;
        let attempt = Attempt {
            waits_for_first_chunk: retrying::may_retry_on_trailers(context, &request, &history),
            ..attempt
        };
        let started_at = attempt.started_at;
        let result = attempt
            .run(&mut RequestSource::Client(client, body), deadline)
            .await;
        let outcome = match repicking::reselect_if_unprocessed(
            context,
            body,
            &history,
            tried_before,
            record,
            result,
        )
        .await
        {
            None => continue,
            Some(Ok(response)) => Ok(response),
            Some(Err(AttemptError::Unprocessed(response))) => Ok(*response),
            Some(Err(AttemptError::Transport(transport_error))) => Err(transport_error),
            // Another may have room; one that was picked for want of another has not.
            Some(Err(AttemptError::ConnectionLimitReached))
                if repicking::has_untried_endpoint(context, &history, tried_before) =>
            {
                record.attempts -= 1;
                continue;
            }
            Some(Err(AttemptError::ConnectionLimitReached)) => {
                return Err(connection_limit_rejection(context, record));
            }
            Some(Err(AttemptError::Rejected(rejection))) => return Err(rejection),
        };
        let failure = match &outcome {
            Ok(response) => retrying::failure_from_response(context, response),
            Err(transport_error) => Some(transport_error.retry_failure()),
        };
        if failure.is_some() {
            record_failure(context, record, &outcome, started_at);
        }
        let retry_delay = failure.and_then(|failure| {
            retrying::decide_retry(
                context,
                client,
                body,
                failure,
                &mut history,
                deadline,
                &mut retry_guard,
            )
        });
        match (retry_delay, outcome) {
            (Some(retry_delay), outcome) => {
                if let Ok(response) = outcome {
                    retrying::discard_response(context, body.is_done(), response).await;
                }
                wait_before_retry(client, body, retry_delay).await?;
            }
            (None, Ok(response)) => {
                if history.attempt_number() == 1 {
                    hedging::record_shadow_hedge(context, client, body, started_at);
                }
                return Ok(UpstreamResponse {
                    _retry_guard: retry_guard,
                    ..response
                });
            }
            (None, Err(transport_error)) => {
                return Err(transport_rejection(record, transport_error));
            }
        }
    }
}

fn record_failure(
    context: &RequestContext<'_>,
    record: &RequestRecord,
    outcome: &Result<UpstreamResponse, TransportError>,
    started_at: Instant,
) {
    let cause = outcome.as_ref().map_or_else(
        |transport_error| transport_error.reason().token().to_owned(),
        UpstreamResponse::status_text,
    );
    context.decision_trace.record(Decision::AttemptFailed {
        attempt: record.attempts,
        endpoint: record.endpoint_label(),
        cause,
        duration: clock::now().saturating_duration_since(started_at),
    });
}

/// How a request ends whose last attempt failed.
pub(super) fn transport_rejection(
    record: &RequestRecord,
    transport_error: TransportError,
) -> Rejection {
    Rejection::new(transport_error.reason(), record.endpoint_label())
}

/// One attempt at one endpoint.
pub(super) struct Attempt<'e> {
    exchange: &'e RequestContext<'e>,
    pub(super) endpoint: Arc<EndpointState>,
    breaker_guard: Option<BreakerGuard>,
    observation: Option<AttemptObservation>,
    pub(super) started_at: Instant,
    /// Which one of those that the backend can have seen, from 1.
    attempt_number: u32,
    /// Whether a call of gRPC is waited for up to its first message, because it may be tried again if it ends before.
    waits_for_first_chunk: bool,
}

impl<'e> Attempt<'e> {
    /// Picks an endpoint, and gets the right to ask it.
    pub(super) fn begin(
        context: &'e RequestContext<'e>,
        request: &RequestView<'_>,
        history: &mut AttemptHistory,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Self, Rejection> {
        let started_at = clock::now();
        if deadline.time_left(started_at).is_zero() {
            // Whoever asked has given up by now.
            return Err(Rejection::from_reason(Reason::RequestTimeout));
        }
        record.attempts += 1;
        let SelectedEndpoint {
            index,
            breaker_guard: breaker,
            observation,
        } = picking::select_endpoint(context, request, history, started_at)?;
        let endpoint = context.destination.backend.endpoints[index].clone();
        record.endpoint = Some(endpoint.clone());
        history.record_endpoint(index);
        Ok(Self {
            exchange: context,
            endpoint,
            breaker_guard: breaker,
            observation,
            started_at,
            attempt_number: history.attempt_number(),
            waits_for_first_chunk: false,
        })
    }

    /// Asks the endpoint, and tells everybody who wants to know how it went.
    pub(super) async fn run(
        self,
        source: &mut RequestSource<'_>,
        deadline: &mut Deadline,
    ) -> Result<UpstreamResponse, AttemptError> {
        let Self {
            exchange: context,
            endpoint,
            breaker_guard: breaker,
            observation,
            started_at,
            attempt_number: number,
            waits_for_first_chunk: looks_ahead,
        } = self;
        let in_flight_guard = endpoint.start_request();
        let mut reporter = AttemptReporter::new(context, breaker, observation, started_at);
        let result = match asking::send_request(context, source, deadline, number, &endpoint).await
        {
            Ok((mut upstream, head)) if looks_ahead && source.is_fully_buffered() => Box::pin(
                asking::read_first_chunk(context, source, deadline, &mut upstream),
            )
            .await
            .map(|first_chunk| (upstream, head, first_chunk)),
            result => result.map(|(upstream, head)| (upstream, head, None)),
        };
        let now = clock::now();
        // What the client took to send its request is not the backend's slowness; and while it still sends, nobody knows how long the backend takes.
        if let Some(request_completed_at) = deadline.started_at() {
            reporter.record_latency(
                now.saturating_duration_since(request_completed_at.max(started_at)),
            );
        }
        match result {
            Ok((upstream, head, first_chunk)) => {
                let response_head = upstream.head();
                let is_unprocessed = response_head.is_some_and(|response_head| {
                    signs::observe(context, &endpoint, &response_head.headers, now)
                        && signs::is_unprocessed(response_head.status, &response_head.headers)
                });
                let (grpc_status, verdict) =
                    classify_head(context, &source.request_view(), &upstream);
                let retry_after = upstream
                    .head()
                    .and_then(|head| classify::parse_retry_after(head, clock::wall_time));
                let pending_reporter = match verdict {
                    // Nothing was asked, so there is nothing to tell.
                    _ if is_unprocessed => {
                        reporter.discard();
                        None
                    }
                    Some(verdict) => {
                        reporter.report(verdict, retry_after, now);
                        None
                    }
                    None => {
                        reporter.record_response_start(now);
                        Some(reporter)
                    }
                };
                let call_deadline = deadline.call_deadline();
                let asking::ReceivedHead {
                    is_upgrade,
                    accepts_body,
                } = head;
                let response = UpstreamResponse {
                    upstream,
                    is_upgrade,
                    is_unprocessed,
                    accepts_body,
                    first_chunk,
                    stream_shutdown: None,
                    capture: None,
                    grpc_status,
                    call_deadline,
                    pending_reporter,
                    in_flight_guard: Some(in_flight_guard),
                    _retry_guard: None,
                };
                if is_unprocessed {
                    Err(AttemptError::Unprocessed(Box::new(response)))
                } else {
                    Ok(response)
                }
            }
            Err(error) => {
                let attempt_deadline =
                    context
                        .destination
                        .policy
                        .timeouts
                        .backend_request
                        .map(|attempt_timeout| {
                            deadline.started_at().unwrap_or(now).max(started_at) + attempt_timeout
                        });
                report_failure(
                    reporter,
                    &error,
                    &endpoint,
                    deadline.is_client_imposed(attempt_deadline, now),
                    now,
                );
                Err(error)
            }
        }
    }
}

fn report_failure(
    reporter: AttemptReporter,
    error: &AttemptError,
    endpoint: &EndpointState,
    is_client_imposed: bool,
    now: Instant,
) {
    match error {
        // It has said that it leaves, and is gone: that is no failure.
        AttemptError::Transport(transport_error)
            if transport_error.is_unprocessed() && endpoint.draining_until().is_some() =>
        {
            reporter.discard()
        }
        // How little time a client gives is no failure of the backend.
        AttemptError::Transport(_) if is_client_imposed => reporter.report_cancelled(now),
        AttemptError::Transport(transport_error) => reporter.report(
            settlement::transport_failure_verdict(transport_error.attempt_outcome()),
            None,
            now,
        ),
        // Nothing was asked, so there is nothing to tell; its guards settle as cancelled.
        AttemptError::ConnectionLimitReached => reporter.discard(),
        AttemptError::Rejected(_) | AttemptError::Unprocessed(_) => reporter.report_cancelled(now),
    }
}

/// Every endpoint has as many connections as it may, and all are busy.
pub(super) fn connection_limit_rejection(
    context: &RequestContext<'_>,
    record: &RequestRecord,
) -> Rejection {
    let rejected_by = record.endpoint.as_ref().map_or_else(
        || context.destination.backend.spec.name.clone(),
        |endpoint| endpoint.label.clone(),
    );
    Rejection::new(Reason::ConnectionLimit, rejected_by).with_retry_after(DEFAULT_RETRY_AFTER)
}

/// What the head of an answer says about the attempt; of gRPC it may say nothing yet.
fn classify_head(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    upstream: &Upstream,
) -> (Option<u8>, Option<AttemptVerdict>) {
    let Some(head) = upstream.head() else {
        return (None, None);
    };
    let status = head.status.as_u16();
    if !request.is_grpc {
        return (
            None,
            Some(classify::verdict_from_status(
                &context.destination.policy,
                status,
            )),
        );
    }
    let trailer_status = || upstream.trailers().and_then(grpc::parse_status);
    let grpc_status = grpc::parse_status(&head.headers)
        .or_else(trailer_status)
        .or_else(|| (status != 200).then(|| grpc::status_from_http(status)));
    (grpc_status, grpc_status.map(grpc::verdict_from_status))
}

/// Waits before a retry, and notices if the client leaves meanwhile.
async fn wait_before_retry(
    client: &mut Client,
    body: &RequestBody,
    delay: Duration,
) -> Result<(), Rejection> {
    if delay.is_zero() {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = clock::sleep(delay) => Ok(()),
        reason = client.closed(), if body.is_done() => Err(fatal_rejection(reason)),
    }
}

/// A client that left, or sends what cannot be understood.
pub(super) fn fatal_rejection(reason: Reason) -> Rejection {
    Rejection {
        is_fatal: true,
        ..Rejection::from_reason(reason)
    }
}

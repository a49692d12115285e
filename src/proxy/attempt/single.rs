//! One attempt at one endpoint, from the selection of the endpoint to the report of the
//! outcome.
//!
//! The module does not decide what follows an attempt.

use std::{sync::Arc, time::Instant};

use crate::{
    clock,
    proxy::{
        attempt::{
            dispatch,
            endpoint_selection::{SelectedEndpoint, select_endpoint},
            history::AttemptSeries,
            outcome::{AttemptError, ResponseSummary, UpstreamResponse},
            reporter::{self, AttemptReporter},
            request_source::RequestSource,
        },
        headers::lifecycle,
        request::{
            classify::{self, AttemptVerdict},
            context::RequestContext,
            deadline::Deadline,
            grpc,
            record::RequestRecord,
            rejection::Rejection,
            view::RequestView,
        },
        upstream::stream::Upstream,
    },
    state::{policies::concurrency_limit::LimitSampler, topology::endpoint::EndpointState},
    telemetry::reason::Reason,
};

/// An attempt that has an endpoint and a permit of its breaker.
pub(crate) struct Attempt<'e> {
    context: RequestContext<'e>,
    pub(crate) endpoint: Arc<EndpointState>,
    selected: SelectedEndpoint,
    limit_sampler: Option<LimitSampler>,
    pub(crate) started_at: Instant,
    /// Number among the attempts that the backend can have seen, from 1.
    number: u32,
}

/// Point at which an attempt hands over its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseHandover {
    /// When the response head has arrived.
    AtHead,
    /// When the first chunk of the body, or its end, has arrived. A gRPC call that ends before
    /// its first message can still be retried.
    AtFirstChunk,
}

impl<'e> Attempt<'e> {
    /// Selects an endpoint and acquires a permit of its breaker.
    ///
    /// # Errors
    /// If the deadline has expired, no endpoint is available, or the breaker rejects the request.
    pub(crate) fn begin(
        context: RequestContext<'e>,
        request: &RequestView<'_>,
        series: &mut AttemptSeries,
        record: &mut RequestRecord,
    ) -> Result<Self, Rejection> {
        let started_at = clock::now();
        if series.deadline.time_left(started_at).is_zero() {
            // The deadline covers all attempts, and the client no longer waits for a response.
            return Err(Rejection::from_reason(Reason::RequestTimeout));
        }
        if !std::mem::take(&mut series.is_replacement) {
            record.attempts += 1;
        }
        let selected = select_endpoint(&context, request, &series.history, started_at)?;
        let endpoint = context.destination.backend.endpoints[selected.index].clone();
        record.endpoint = Some(endpoint.clone());
        series.history.record_endpoint(selected.index);
        Ok(Self {
            context,
            endpoint,
            selected,
            limit_sampler: series.limit_sampler.clone(),
            started_at,
            number: series.history.attempt_number(),
        })
    }

    /// Sends the request, waits for the response head, and reports the outcome to every
    /// observer.
    ///
    /// # Errors
    /// [`AttemptError`] states whether a retry can follow.
    pub(crate) async fn run(
        self,
        source: &mut RequestSource<'_>,
        deadline: &mut Deadline,
        handover: ResponseHandover,
    ) -> Result<UpstreamResponse, AttemptError> {
        let Self {
            context,
            endpoint,
            selected,
            limit_sampler,
            started_at,
            number,
        } = self;
        let in_flight = endpoint.start_request();
        let mut reporter = AttemptReporter::new(&context, selected, limit_sampler, started_at);
        let sent = dispatch::send_request(&context, source, deadline, number, &endpoint).await;
        let result = match sent {
            Ok((mut stream, head))
                if handover == ResponseHandover::AtFirstChunk && source.is_fully_buffered() =>
            {
                let first = dispatch::read_first_chunk(&context, source, deadline, &mut stream);
                // Boxing keeps the future of every other request small.
                Box::pin(first).await.map(|chunk| (stream, head, chunk))
            }
            sent => sent.map(|(stream, head)| (stream, head, None)),
        };
        let now = clock::now();
        // The latency of the backend excludes the time that the client took to send its
        // request. While the client still sends, the latency is unknown.
        if let Some(completed_at) = deadline.started_at() {
            reporter.record_latency(now.saturating_duration_since(completed_at.max(started_at)));
        }
        match result {
            Ok((stream, received, first_chunk)) => {
                let is_unprocessed = observe_endpoint(&context, &endpoint, &stream, now);
                let request = source.request_view();
                let (grpc_status, verdict) = classify_head(&context, &request, &stream);
                let pending_report = report_head(reporter, &stream, verdict, is_unprocessed, now);
                let response = UpstreamResponse {
                    stream,
                    head: ResponseSummary {
                        is_upgrade: received.is_upgrade,
                        is_unprocessed,
                        accepts_body: received.accepts_body,
                        first_chunk,
                        grpc_status,
                        call_deadline: deadline.call_deadline(),
                    },
                    in_flight,
                    pending_report: pending_report.map(Box::new),
                };
                if is_unprocessed {
                    Err(AttemptError::Unprocessed(Box::new(response)))
                } else {
                    Ok(response)
                }
            }
            Err(error) => {
                let is_client_imposed =
                    has_client_deadline_expired(&context, deadline, started_at, now);
                report_failure(reporter, &error, &endpoint, is_client_imposed, now);
                Err(error)
            }
        }
    }
}

/// Records the lifecycle headers of a response.
///
/// Returns whether the endpoint states that it did not process the request.
fn observe_endpoint(
    context: &RequestContext<'_>,
    endpoint: &EndpointState,
    stream: &Upstream,
    now: Instant,
) -> bool {
    stream.head().is_some_and(|head| {
        lifecycle::observe(context, endpoint, &head.headers, now)
            && lifecycle::is_unprocessed(head.status, &head.headers)
    })
}

/// Returns the gRPC status and the verdict that a response head determines.
///
/// Both are `None` for a gRPC head whose status is still to arrive in the trailers.
fn classify_head(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    stream: &Upstream,
) -> (Option<u8>, Option<AttemptVerdict>) {
    let Some(head) = stream.head() else {
        return (None, None);
    };
    let status = head.status.as_u16();
    if !request.is_grpc {
        let verdict = classify::verdict_from_status(&context.destination.policy, status);
        return (None, Some(verdict));
    }
    let trailer_status = || stream.trailers().and_then(grpc::parse_status);
    let grpc_status = grpc::parse_status(&head.headers)
        .or_else(trailer_status)
        .or_else(|| (status != 200).then(|| grpc::status_from_http(status)));
    (grpc_status, grpc_status.map(grpc::verdict_from_status))
}

/// Reports a response head. Returns the reporter if the verdict depends on the trailers.
fn report_head(
    mut reporter: AttemptReporter,
    stream: &Upstream,
    verdict: Option<AttemptVerdict>,
    is_unprocessed: bool,
    now: Instant,
) -> Option<AttemptReporter> {
    if is_unprocessed {
        // The request did not run, so there is no outcome to report.
        reporter.discard();
        return None;
    }
    let Some(verdict) = verdict else {
        reporter.record_response_start(now);
        return Some(reporter);
    };
    let retry_after = stream
        .head()
        .and_then(|head| classify::parse_retry_after(head, clock::wall_time));
    reporter.report(verdict, retry_after, now);
    None
}

/// Returns whether a deadline that the client set has expired, and the timeouts of the policy
/// would have allowed clearly more time.
///
/// The attempt started at `started_at`. Its timeout counts from the end of the request if that
/// is later.
fn has_client_deadline_expired(
    context: &RequestContext<'_>,
    deadline: &Deadline,
    started_at: Instant,
    now: Instant,
) -> bool {
    let timeout = context.destination.policy.timeouts.backend_request;
    let expires_at =
        timeout.map(|timeout| deadline.started_at().unwrap_or(now).max(started_at) + timeout);
    deadline.is_client_imposed(expires_at, now)
}

fn report_failure(
    reporter: AttemptReporter,
    error: &AttemptError,
    endpoint: &EndpointState,
    is_client_imposed: bool,
    now: Instant,
) {
    match error {
        // The endpoint announced its drain before it closed, so this is no failure.
        AttemptError::Transport(error)
            if error.is_unprocessed() && endpoint.draining_until().is_some() =>
        {
            reporter.discard();
        }
        // A deadline that the client set too short is no failure of the backend.
        AttemptError::Transport(_) if is_client_imposed => reporter.report_cancelled(now),
        AttemptError::Transport(error) => reporter.report(
            reporter::transport_failure_verdict(error.attempt_outcome()),
            None,
            now,
        ),
        // Nothing was sent, so there is no outcome to report. The guards settle as cancelled.
        AttemptError::ConnectionLimitReached => reporter.discard(),
        AttemptError::Rejected(_) | AttemptError::Unprocessed(_) => reporter.report_cancelled(now),
    }
}

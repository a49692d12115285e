//! The life of a request, from top to bottom.

use std::sync::Arc;

use ahash::RandomState;
use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    policy::{
        document::Direction,
        matching::RouteRule,
        snapshot::{Protocol, RedirectSpec, RouteActionSpec},
    },
    proxy::{
        admission,
        attempt::{self, UpstreamResponse},
        authority::{self, RequestTarget},
        client::Client,
        degradation, faults, framing, headers, mirroring,
        notes::{self, DecisionTrace},
        rate_limits,
        record::{self, RequestRecord},
        rejection::{self, DEFAULT_RETRY_AFTER, Rejection, ResponseOverride},
        relay,
        request_body::RequestBody,
        routing,
        signs::{self, LifecycleHeaders},
        worker::Worker,
    },
    state::{
        active_policy::{ActivePolicy, DestinationState, RouteState},
        instance::drain::InFlightGuard,
        policies::concurrency_limit::{ConcurrencyPermit, LimitSampler},
    },
    telemetry::{decision_log::Decision, reason::Reason},
};

/// What becomes of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionDisposition {
    /// It may carry another request.
    Reuse,
    /// It ends; the client is still sending.
    Linger,
    /// It ends.
    Close,
}

/// What a request is, once it is known where it goes.
#[derive(Clone, Copy)]
pub(super) struct RequestContext<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) active_policy: &'a Arc<ActivePolicy>,
    pub(super) route: &'a RouteState,
    pub(super) rule: &'a RouteRule,
    pub(super) destination: &'a DestinationState,
    pub(super) request_target: &'a RequestTarget,
    pub(super) request_id: &'a HeaderValue,
    pub(super) rate_limit_hasher: &'a RandomState,
    /// What is noted about it.
    pub(super) decision_trace: &'a DecisionTrace,
    /// Who learns from what its attempts take.
    pub(super) limit_sampler: Option<&'a LimitSampler>,
    is_closing: bool,
}

impl<'a> RequestContext<'a> {
    /// A request on its way to a destination.
    pub(super) fn new(
        worker: &'a Arc<Worker>,
        active_policy: &'a Arc<ActivePolicy>,
        (route, rule): (&'a RouteState, &'a RouteRule),
        destination: &'a DestinationState,
        request_target: &'a RequestTarget,
        (request_id, decision_trace): (&'a HeaderValue, &'a DecisionTrace),
    ) -> Self {
        Self {
            worker,
            active_policy,
            route,
            rule,
            destination,
            request_target,
            request_id,
            rate_limit_hasher: &worker.state.rate_limit_hasher,
            decision_trace,
            limit_sampler: None,
            is_closing: false,
        }
    }

    /// The same request on its way elsewhere.
    pub(super) fn with_destination(self, destination: &'a DestinationState) -> Self {
        Self {
            destination,
            limit_sampler: None,
            ..self
        }
    }

    /// The same request with somebody who learns from it.
    pub(super) fn with_limit_sampler<'b>(
        &'b self,
        limit_sampler: Option<&'b LimitSampler>,
    ) -> RequestContext<'b> {
        RequestContext {
            limit_sampler,
            ..*self
        }
    }

    /// Counts a refusal that shadow mode lets pass.
    pub(super) fn record_shadow_rejection(&self, reason: Reason, rejected_by: &Arc<str>) {
        let evidence = notes::describe_evidence(self, reason, rejected_by, None);
        self.decision_trace.record(Decision::Refused {
            reason,
            by: rejected_by.clone(),
            evidence,
            is_shadow: true,
        });
        self.route
            .metrics
            .record_shadow_refusal(&self.worker.state.telemetry.metrics, reason);
    }

    /// Whether the backend is spoken to in HTTP/2.
    pub(super) fn is_backend_http2(&self) -> bool {
        matches!(
            self.destination.backend.spec.protocol,
            Protocol::Http2 | Protocol::Grpc
        )
    }

    /// Whether the connection is to end after this request.
    pub(super) fn closes_connection(&self) -> bool {
        self.is_closing || must_close_for_drain(self.worker, self.route.spec.direction)
    }
}

/// Serves one request.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    client: &mut Client,
    is_closing: bool,
) -> ConnectionDisposition {
    let started_at = clock::now();
    let active_policy = worker.state.active_policy.load_full();
    let in_flight = InFlightGuard::start(&worker.state, client.listener.direction, started_at);
    let request_id = headers::request_id(client);
    let decision_trace = DecisionTrace::new(started_at);
    let mut record = RequestRecord::new(started_at, request_id);
    let disposition = match proxy_request(
        worker,
        &active_policy,
        client,
        &mut record,
        &decision_trace,
        is_closing,
    )
    .await
    {
        Ok(disposition) => disposition,
        Err(rejection) => {
            reject(
                worker,
                &active_policy,
                client,
                &rejection,
                &mut record,
                is_closing,
            )
            .await
        }
    };
    let ended_at = clock::now();
    record::record_decisions(
        worker,
        &active_policy,
        client,
        &record,
        decision_trace,
        ended_at,
    );
    record::record_completion(worker, &active_policy, client, &record, ended_at);
    drop(in_flight);
    disposition
}

async fn proxy_request(
    worker: &Arc<Worker>,
    active_policy: &Arc<ActivePolicy>,
    client: &mut Client,
    record: &mut RequestRecord,
    decision_trace: &DecisionTrace,
    is_closing: bool,
) -> Result<ConnectionDisposition, Rejection> {
    framing::check(client)?;
    if client.listener.direction == Direction::Inbound && worker.state.drain.rejects_requests() {
        return Err(Rejection::from_reason(Reason::Draining).with_retry_after(DEFAULT_RETRY_AFTER));
    }
    if headers::is_looping(client) {
        return Err(Rejection::from_reason(Reason::LoopDetected));
    }
    let request_target = authority::parse(client)?;
    let (route, rule) = routing::match_route(active_policy, client, &request_target)?;
    record.route_index = Some(rule.route);
    admission::check_identity(route, client)?;
    if let RouteActionSpec::Redirect(redirect) = &route.spec.action {
        return Err(redirect_rejection(
            redirect,
            &request_target,
            rule,
            client.identity.is_secure,
        ));
    }
    let (index, destination) = routing::select_destination(route)?;
    record.destination_index = Some(index);
    let request_id = record.request_id.clone();
    let context = RequestContext {
        is_closing,
        ..RequestContext::new(
            worker,
            active_policy,
            (route, rule),
            destination,
            &request_target,
            (&request_id, decision_trace),
        )
    };

    let mut body = RequestBody::new(client, destination.policy.retry.max_buffered_body_bytes);
    let mut permits = RequestPermits::default();
    let outcome = admit_and_send(&context, client, &mut body, record, &mut permits)
        .await
        .inspect_err(|rejection| notes::record_rejection(&context, rejection));
    let outcome = if degradation::is_configured(&context) {
        Box::pin(degradation::degrade(
            &context,
            client,
            &mut body,
            record,
            &mut permits,
            outcome,
        ))
        .await
    } else {
        outcome.map(|response| (context, response))
    };
    record.received_bytes = body.received_bytes();
    let (context, response) = outcome?;
    let disposition = relay::relay(&context, client, &mut body, response, record).await;
    record.received_bytes = body.received_bytes();
    disposition
}

/// What a request holds until its answer is through.
#[derive(Default)]
pub(super) struct RequestPermits {
    /// A place in flight.
    pub(super) concurrency_permit: Option<ConcurrencyPermit>,
    fault_permit: Option<OwnedSemaphorePermit>,
}

/// Lets a request in, and asks its backend.
async fn admit_and_send(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    permits: &mut RequestPermits,
) -> Result<UpstreamResponse, Rejection> {
    admission::check_warm_up(context, client, record.started_at)?;
    admission::check_load_shedding(context, client)?;
    admission::check_admission_control(context, record.started_at)?;
    rate_limits::admit(context, client, &mut record.rate_limits, record.started_at).await?;
    permits.concurrency_permit = admission::acquire_concurrency_permit(context, client).await?;
    if let Some(fault) = &context.route.spec.fault_injection {
        permits.fault_permit = Box::pin(faults::inject(context, fault, client)).await?;
    }
    let mut pending_mirrors = mirroring::sample_mirrors(context);
    pending_mirrors.send(context, client, body, record.started_at);
    let result = attempt::send_with_permit(
        context,
        client,
        body,
        record,
        &mut permits.concurrency_permit,
        record.started_at,
    )
    .await;
    pending_mirrors.send_or_skip(context, client, body, record.started_at);
    result
}

async fn reject(
    worker: &Worker,
    active_policy: &ActivePolicy,
    client: &mut Client,
    rejection: &Rejection,
    record: &mut RequestRecord,
    is_closing: bool,
) -> ConnectionDisposition {
    record.reason = Some(rejection.reason);
    record.rejected_by = rejection.rejected_by.clone();
    if rejection.reason == Reason::ClientClosed {
        return ConnectionDisposition::Close;
    }
    let is_grpc = rejection.is_grpc(client);
    record.status = if is_grpc { 200 } else { rejection.status() };
    record.grpc_status = is_grpc.then(|| rejection.grpc_status());
    let has_unread_body = !client.is_body_done();
    let direction = client.listener.direction;
    if rejection.is_fatal
        || has_unread_body
        || is_closing
        || must_close_for_drain(worker, direction)
        || matches!(rejection.reason, Reason::BadRequest)
    {
        client.close_after_response();
    }
    let rate_limits = record
        .route_index
        .map(|route| (&active_policy.routes[route], &record.rate_limits));
    let lifecycle_headers = if direction == Direction::Inbound {
        signs::current_headers(worker, active_policy)
    } else {
        LifecycleHeaders::default()
    };
    match rejection::send_rejection(client, rejection, rate_limits, lifecycle_headers).await {
        Err(_) => ConnectionDisposition::Close,
        Ok(()) if rejection.is_fatal || has_unread_body => ConnectionDisposition::Linger,
        Ok(()) => ConnectionDisposition::Reuse,
    }
}

/// Whether connections are to end because this instance is leaving, as its callers see it. What the app asks of others is not its callers' business.
fn must_close_for_drain(worker: &Worker, direction: Direction) -> bool {
    direction == Direction::Inbound && worker.state.drain.is_draining()
}

fn redirect_rejection(
    redirect: &RedirectSpec,
    request_target: &RequestTarget,
    rule: &RouteRule,
    is_secure: bool,
) -> Rejection {
    let scheme = redirect
        .scheme
        .as_deref()
        .unwrap_or(if is_secure { "https" } else { "http" });
    let host = redirect
        .host
        .as_deref()
        .unwrap_or_else(|| request_target.host());
    let port = redirect
        .port
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let path = redirect.path.as_ref().map_or_else(
        || request_target.path_and_query.clone(),
        |rewrite| routing::rewrite_path(request_target, rule, rewrite),
    );
    let location = format!("{scheme}://{host}{port}{path}");
    Rejection {
        response_override: Some(Box::new(ResponseOverride::Redirect {
            status: redirect.status,
            location,
        })),
        ..Rejection::from_reason(Reason::Redirect)
    }
}

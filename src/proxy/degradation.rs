//! What is answered when the backend cannot: an earlier answer, what the policy says, or what another backend says; in this order, because an answer
//! of the app's own is worth most.
//!
//! Another backend is asked only if the request has not run, or may run twice: a fallback is no leave to pay twice.

use crate::{
    clock,
    policy::{
        document::FallbackTrigger,
        snapshot::{FallbackAction, FallbackSpec, FaultAbortStatus, PolicySpec},
        units::StatusSet,
    },
    proxy::{
        admission,
        attempt::{self, UpstreamResponse},
        client::Client,
        grpc, headers, notes,
        record::RequestRecord,
        rejection::{Rejection, ResponseOverride},
        request_body::RequestBody,
        retrying,
        serve::{RequestContext, RequestPermits},
        stale,
    },
    resilience::Mode,
    telemetry::{decision_log::Decision, metrics::DegradationOutcome, reason::Reason},
};

/// How a request has failed.
#[derive(Debug, Clone, Copy)]
struct DegradableFailure {
    trigger: Option<FallbackTrigger>,
    /// Whether an earlier answer may be given instead.
    allows_stale: bool,
    /// Whether the request may have run.
    may_have_run: bool,
    /// What the backend has answered, if it did.
    status: Option<u16>,
}

/// What came of a request: where its answer is from, and the answer.
type DegradationResult<'e> = Result<(RequestContext<'e>, UpstreamResponse), Rejection>;

/// Whether the policy has anything to answer instead.
pub(super) fn is_configured(context: &RequestContext<'_>) -> bool {
    let policy = &context.destination.policy;
    policy.stale_if_error.is_some() || policy.fallback.is_some()
}

/// Looks at how a request went, and answers something else if it failed and the policy has something.
pub(super) async fn degrade<'e>(
    context: &RequestContext<'e>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    permits: &mut RequestPermits,
    outcome: Result<UpstreamResponse, Rejection>,
) -> DegradationResult<'e> {
    let policy = &context.destination.policy;
    let failure = match &outcome {
        Ok(response) => failure_from_response(policy, response),
        Err(rejection) => failure_from_rejection(policy, rejection),
    };
    let Some(failure) = failure else {
        return outcome.map(|response| (*context, response));
    };
    if let Some(stale) = stale_rejection(context, client, failure, &outcome) {
        discard_response(context, body, outcome).await;
        return Err(stale);
    }
    let fallback = policy.fallback.as_ref().filter(|fallback| {
        failure
            .trigger
            .is_some_and(|trigger| fallback.triggers.contains(&trigger))
    });
    match fallback.map(|fallback| plan_fallback(context, client, body, fallback, failure)) {
        None | Some(FallbackPlan::PassThrough) => outcome.map(|response| (*context, response)),
        Some(FallbackPlan::Respond(response_override)) => {
            let refusal = original_rejection(&outcome, record);
            discard_response(context, body, outcome).await;
            Err(Rejection {
                response_override: Some(Box::new(response_override)),
                ..refusal
            })
        }
        Some(FallbackPlan::SendToBackend(auxiliary_index)) => {
            discard_response(context, body, outcome).await;
            // What it held of the first backend is free for others.
            *permits = RequestPermits::default();
            record.auxiliary_index = Some(auxiliary_index);
            record.endpoint = None;
            let context =
                context.with_destination(&context.route.auxiliary_backends[auxiliary_index]);
            send_to_fallback(context, client, body, record, permits)
                .await
                .inspect_err(|rejection| notes::record_rejection(&context, rejection))
        }
    }
}

enum FallbackPlan {
    /// What there is passes.
    PassThrough,
    /// This is answered.
    Respond(ResponseOverride),
    /// The backend with this index aside is asked.
    SendToBackend(usize),
}

fn plan_fallback(
    context: &RequestContext<'_>,
    client: &Client,
    body: &RequestBody,
    fallback: &FallbackSpec,
    failure: DegradableFailure,
) -> FallbackPlan {
    let plan = match &fallback.action {
        FallbackAction::Response { .. } if client.is_grpc() => FallbackPlan::PassThrough,
        FallbackAction::Response {
            status,
            content_type,
            body,
        } => FallbackPlan::Respond(ResponseOverride::Fallback {
            status: *status,
            content_type: content_type.clone(),
            body: body.clone(),
        }),
        FallbackAction::Backend(name) => {
            let can_retry = !failure.may_have_run
                || client.request_view().is_idempotent()
                || context.destination.policy.retry.config.retry_non_idempotent;
            let is_other_backend = context.destination.backend.spec.name != *name;
            let auxiliary_index = context
                .route
                .auxiliary_backends
                .iter()
                .position(|auxiliary_index| auxiliary_index.backend.spec.name == *name);
            auxiliary_index
                .filter(|_| can_retry && is_other_backend && body.is_replayable())
                .map_or(FallbackPlan::PassThrough, FallbackPlan::SendToBackend)
        }
    };
    let (fallback_description, degradation_outcome) = match &plan {
        FallbackPlan::PassThrough => return plan,
        FallbackPlan::Respond(_) => (
            "what the fallback says".to_owned(),
            DegradationOutcome::Response,
        ),
        FallbackPlan::SendToBackend(auxiliary_index) => (
            format!(
                "what {} says",
                context.route.auxiliary_backends[*auxiliary_index]
                    .backend
                    .spec
                    .name
            ),
            DegradationOutcome::Backend,
        ),
    };
    let is_shadow = fallback.mode == Mode::Shadow;
    context.route.metrics.record_degradation(
        &context.worker.state.telemetry.metrics,
        if is_shadow {
            DegradationOutcome::Shadow
        } else {
            degradation_outcome
        },
    );
    context.decision_trace.record(Decision::FallbackUsed {
        fallback: fallback_description,
        is_shadow,
    });
    if is_shadow {
        FallbackPlan::PassThrough
    } else {
        plan
    }
}

/// Asks another backend under its own policy, with a time of its own; only the client's deadline goes on.
async fn send_to_fallback<'e>(
    context: RequestContext<'e>,
    client: &mut Client,
    body: &mut RequestBody,
    record: &mut RequestRecord,
    permits: &mut RequestPermits,
) -> DegradationResult<'e> {
    admission::check_admission_control(&context, clock::now())?;
    permits.concurrency_permit = admission::acquire_concurrency_permit(&context, client).await?;
    let response = attempt::send_with_permit(
        &context,
        client,
        body,
        record,
        &mut permits.concurrency_permit,
        clock::now(),
    )
    .await?;
    Ok((context, response))
}

/// The answer of the app's that is not passed on; its connection stays if its end is near.
async fn discard_response(
    context: &RequestContext<'_>,
    body: &RequestBody,
    outcome: Result<UpstreamResponse, Rejection>,
) {
    if let Ok(response) = outcome {
        retrying::discard_response(context, body.is_done(), response).await;
    }
}

fn stale_rejection(
    context: &RequestContext<'_>,
    client: &Client,
    failure: DegradableFailure,
    outcome: &Result<UpstreamResponse, Rejection>,
) -> Option<Rejection> {
    let (cached, age, mode) = failure
        .allows_stale
        .then(|| stale::find_stale(context, client))
        .flatten()?;
    let is_shadow = mode == Mode::Shadow;
    context.route.metrics.record_degradation(
        &context.worker.state.telemetry.metrics,
        if is_shadow {
            DegradationOutcome::Shadow
        } else {
            DegradationOutcome::Stale
        },
    );
    context.decision_trace.record(Decision::FallbackUsed {
        fallback: format!("an answer from {} s ago", age.as_secs()),
        is_shadow,
    });
    if is_shadow {
        return None;
    }
    let cause = match outcome {
        Ok(_) => failure.status.unwrap_or_default().to_string(),
        Err(rejection) => rejection.reason.token().to_owned(),
    };
    let mut headers = cached.headers.clone();
    headers::apply_modifier(&mut headers, &context.route.spec.filters.response_headers);
    let response_override = ResponseOverride::Stale {
        fields: headers,
        body: cached.body.clone(),
        age,
        now: failure.status,
    };
    Some(Rejection {
        response_override: Some(Box::new(response_override)),
        ..Rejection::new(Reason::Stale, cause.into())
    })
}

/// The refusal that an answer of the app's becomes, or the one that there is.
fn original_rejection(
    outcome: &Result<UpstreamResponse, Rejection>,
    record: &RequestRecord,
) -> Rejection {
    match outcome {
        Ok(_) => Rejection::new(Reason::RetriesExhausted, record.endpoint_label()),
        Err(rejection) => Rejection {
            retry_after: rejection.retry_after,
            is_fatal: rejection.is_fatal,
            ..Rejection::new(rejection.reason, rejection.rejected_by.clone())
        },
    }
}

fn failure_from_response(
    policy: &PolicySpec,
    response: &UpstreamResponse,
) -> Option<DegradableFailure> {
    let head = response.upstream.head()?;
    let failure = match response
        .grpc_status
        .filter(|status| *status != 0 && head.status == 200)
    {
        _ if response.is_upgrade => None,
        Some(status) => {
            failure_from_grpc_status(policy, status, grpc::parse_status(&head.headers).is_none())
        }
        None => failure_from_status(policy, head.status.as_u16()),
    };
    failure.map(|failure| DegradableFailure {
        may_have_run: failure.may_have_run && !response.is_unprocessed,
        ..failure
    })
}

fn failure_from_status(policy: &PolicySpec, status: u16) -> Option<DegradableFailure> {
    let codes = &policy.retry.codes;
    let is_exhausted = if *codes == StatusSet::default() {
        (502..=504).contains(&status)
    } else {
        codes.contains(status)
    };
    // RFC 5861 section 4 names the errors.
    let allows_stale = matches!(status, 500 | 502..=504);
    let trigger = is_exhausted.then_some(FallbackTrigger::RetriesExhausted);
    (is_exhausted || allows_stale).then_some(DegradableFailure {
        trigger,
        allows_stale,
        may_have_run: true,
        status: Some(status),
    })
}

/// A status that the policy names, given instead of an answer, is one of before the call runs; without any, only "unavailable" is a failure.
fn failure_from_grpc_status(
    policy: &PolicySpec,
    status: u8,
    has_started: bool,
) -> Option<DegradableFailure> {
    let codes = policy.retry.grpc_codes;
    let is_named = codes & (1 << status) != 0;
    let is_exhausted = is_named || (codes == 0 && status == grpc::UNAVAILABLE);
    is_exhausted.then_some(DegradableFailure {
        trigger: Some(FallbackTrigger::RetriesExhausted),
        allows_stale: false,
        may_have_run: has_started || !is_named,
        status: None,
    })
}

fn failure_from_rejection(policy: &PolicySpec, rejection: &Rejection) -> Option<DegradableFailure> {
    let (trigger, may_have_run) = match rejection.reason {
        Reason::BreakerOpen => (FallbackTrigger::CircuitOpen, false),
        Reason::ConnectTimeout => (FallbackTrigger::Timeout, false),
        Reason::UpstreamTimeout | Reason::RequestTimeout => (FallbackTrigger::Timeout, true),
        Reason::ConnectFailed | Reason::TlsFailed => (FallbackTrigger::RetriesExhausted, false),
        Reason::UpstreamReset | Reason::UpstreamProtocolError => {
            (FallbackTrigger::RetriesExhausted, true)
        }
        Reason::NoHealthyEndpoint => (FallbackTrigger::NoHealthyEndpoint, false),
        Reason::AdmissionControl
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit
        | Reason::Shed => (FallbackTrigger::Overload, false),
        // As if the backend had said it.
        Reason::FaultInjected => {
            let failure = match rejection.response_override.as_deref() {
                Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
                    failure_from_status(policy, *status)
                }
                Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => {
                    failure_from_grpc_status(policy, *status, false)
                }
                _ => None,
            };
            return failure.map(|failure| DegradableFailure {
                may_have_run: false,
                status: None,
                ..failure
            });
        }
        _ => return None,
    };
    Some(DegradableFailure {
        trigger: Some(trigger),
        allows_stale: true,
        may_have_run,
        status: None,
    })
}

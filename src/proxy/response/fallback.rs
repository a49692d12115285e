//! Decides what a client receives when the backend fails: a stale response, a fixed response,
//! or the response of another backend.
//!
//! A stale response takes precedence, because a response of the app itself is worth most.
//! Another backend receives the request only if the request has not run, or may run twice. A
//! fallback does not permit a payment to be repeated.
//!
//! The module does not decide what counts as a failure.

use crate::{
    clock,
    policy::sections::fallback::{FallbackAction, FallbackSpec},
    proxy::{
        admission,
        attempt::{discard, outcome::UpstreamResponse, retry_loop},
        downstream::task::{RequestPermits, RequestTask},
        headers::hop_by_hop::apply_modifier,
        request::{
            context::RequestContext,
            evidence,
            rejection::{Rejection, ResponseOverride},
        },
        response::{
            degradable_failure::{
                DegradableFailure, failure_from_rejection, failure_from_response,
            },
            stale,
        },
    },
    resilience::Mode,
    telemetry::{decision::Decision, reason::Reason, route_metrics::DegradationOutcome},
};

/// Returns whether the policy of the destination can replace a failure.
pub(crate) fn is_configured(context: &RequestContext<'_>) -> bool {
    let policy = &context.destination.policy;
    policy.stale_if_error.is_some() || policy.fallback.is_some()
}

/// Replaces a failed outcome as the policy says. Any other outcome is returned unchanged.
///
/// # Errors
/// The rejection that the client receives. Stale and fixed responses are rejections with a
/// response override.
pub(crate) async fn degrade(
    task: &mut RequestTask<'_>,
    outcome: Result<UpstreamResponse, Rejection>,
) -> Result<UpstreamResponse, Rejection> {
    let policy = &task.context.destination.policy;
    let failure = match &outcome {
        Ok(response) => failure_from_response(policy, response),
        Err(rejection) => failure_from_rejection(policy, rejection),
    };
    let Some(failure) = failure else {
        return outcome;
    };
    if let Some(stale) = stale_rejection(task, failure, &outcome) {
        discard_outcome(task, outcome).await;
        return Err(stale);
    }
    let fallback = policy.fallback.as_ref().filter(|fallback| {
        failure
            .trigger
            .is_some_and(|trigger| fallback.triggers.contains(&trigger))
    });
    match fallback.map(|fallback| plan_fallback(task, fallback, failure)) {
        None | Some(FallbackPlan::PassThrough) => outcome,
        Some(FallbackPlan::Respond(response)) => {
            let rejection = original_rejection(task, &outcome);
            discard_outcome(task, outcome).await;
            Err(rejection.with_override(response))
        }
        Some(FallbackPlan::SendToBackend(index)) => {
            discard_outcome(task, outcome).await;
            // Other requests can use the permits of the first backend from here on.
            task.permits = RequestPermits::default();
            task.record.auxiliary_index = Some(index);
            task.record.endpoint = None;
            let auxiliary_backends = &task.context.route.auxiliary_backends;
            task.context = task.context.with_destination(&auxiliary_backends[index]);
            let result = send_to_fallback(task).await;
            result.inspect_err(|rejection| evidence::record_rejection(&task.context, rejection))
        }
    }
}

/// The action of a fallback for one failed outcome.
enum FallbackPlan {
    /// The client receives the original outcome.
    PassThrough,
    /// The client receives a fixed response.
    Respond(ResponseOverride),
    /// The request is sent to the auxiliary backend with this index in the route.
    SendToBackend(usize),
}

/// Plans a fallback, counts it and records it. In shadow mode the original outcome stands.
fn plan_fallback(
    task: &RequestTask<'_>,
    fallback: &FallbackSpec,
    failure: DegradableFailure,
) -> FallbackPlan {
    let context = &task.context;
    let plan = choose_plan(task, fallback, failure);
    let (description, outcome) = match &plan {
        FallbackPlan::PassThrough => return plan,
        FallbackPlan::Respond(_) => (
            "the fixed response of the fallback".to_owned(),
            DegradationOutcome::Response,
        ),
        FallbackPlan::SendToBackend(index) => {
            let backend = &context.route.auxiliary_backends[*index].backend;
            let description = format!("the response of backend {}", backend.spec.name);
            (description, DegradationOutcome::Backend)
        }
    };
    let is_shadow = fallback.mode == Mode::Shadow;
    record_degradation(context, outcome, description, is_shadow);
    if is_shadow {
        FallbackPlan::PassThrough
    } else {
        plan
    }
}

fn choose_plan(
    task: &RequestTask<'_>,
    fallback: &FallbackSpec,
    failure: DegradableFailure,
) -> FallbackPlan {
    let (context, request) = (&task.context, task.request());
    match &fallback.action {
        FallbackAction::Response { .. } if request.is_grpc => FallbackPlan::PassThrough,
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
            let destination = context.destination;
            let may_repeat = !failure.may_have_run
                || request.is_idempotent()
                || destination.policy.retry.config.retry_non_idempotent;
            let is_other_backend = destination.backend.spec.name != *name;
            let mut backends = context.route.auxiliary_backends.iter();
            let index = backends.position(|auxiliary| auxiliary.backend.spec.name == *name);
            index
                .filter(|_| may_repeat && is_other_backend && task.body.is_replayable())
                .map_or(FallbackPlan::PassThrough, FallbackPlan::SendToBackend)
        }
    }
}

/// Sends the request to a fallback backend under the policy of that backend.
///
/// The deadline of the client continues; the request timeout restarts.
async fn send_to_fallback(task: &mut RequestTask<'_>) -> Result<UpstreamResponse, Rejection> {
    admission::admit_to_backend(task).await?;
    retry_loop::send(task, clock::now()).await
}

/// Discards the response of a replaced outcome, if it has one.
async fn discard_outcome(task: &RequestTask<'_>, outcome: Result<UpstreamResponse, Rejection>) {
    if let Ok(response) = outcome {
        discard::discard_response(task, response).await;
    }
}

/// Finds a stale response for a failure, counts it and records it.
///
/// Returns `None` if there is none, or in shadow mode.
fn stale_rejection(
    task: &RequestTask<'_>,
    failure: DegradableFailure,
    outcome: &Result<UpstreamResponse, Rejection>,
) -> Option<Rejection> {
    if !failure.allows_stale {
        return None;
    }
    let context = &task.context;
    let (cached, age, mode) = stale::find_stale(context, &task.request())?;
    let is_shadow = mode == Mode::Shadow;
    let description = format!("a response from {} s ago", age.as_secs());
    record_degradation(context, DegradationOutcome::Stale, description, is_shadow);
    if is_shadow {
        return None;
    }
    let cause = match outcome {
        Ok(_) => failure.status.unwrap_or_default().to_string(),
        Err(rejection) => rejection.reason.token().to_owned(),
    };
    let mut headers = cached.headers.clone();
    apply_modifier(&mut headers, &context.route.spec.filters.response_headers);
    let response = ResponseOverride::Stale {
        headers,
        body: cached.body.clone(),
        age,
        upstream_status: failure.status,
    };
    Some(Rejection::new(Reason::Stale, cause.into()).with_override(response))
}

fn record_degradation(
    context: &RequestContext<'_>,
    outcome: DegradationOutcome,
    fallback: String,
    is_shadow: bool,
) {
    let counted = if is_shadow {
        DegradationOutcome::Shadow
    } else {
        outcome
    };
    let metrics = &context.worker.state.telemetry.metrics;
    context.route.metrics.record_degradation(metrics, counted);
    context.decision_trace.record(Decision::FallbackUsed {
        fallback,
        is_shadow,
    });
}

/// Returns the rejection for a failed outcome, without its response override.
fn original_rejection(
    task: &RequestTask<'_>,
    outcome: &Result<UpstreamResponse, Rejection>,
) -> Rejection {
    match outcome {
        Ok(_) => Rejection::new(Reason::RetriesExhausted, task.record.endpoint_label()),
        Err(rejection) => Rejection {
            retry_after: rejection.retry_after,
            is_fatal: rejection.is_fatal,
            ..Rejection::new(rejection.reason, rejection.rejected_by.clone())
        },
    }
}

//! What is answered when the backend cannot: an earlier answer, what the policy says, or what another backend says; in this order, because an answer
//! of the app's own is worth most.
//!
//! Another backend is asked only if the request has not run, or may run twice: a fallback is no leave to pay twice.

use super::{
    admission,
    attempt::{self, Answered},
    client::Client,
    grpc, headers, notes,
    record::Progress,
    rejection::{Instead, Rejection},
    request_body::RequestBody,
    retrying,
    serve::{Exchange, Held},
    stale,
};
use crate::{
    clock,
    policy::{
        document::FallbackTrigger,
        snapshot::{FallbackSpec, FallbackTo, FaultAnswer, PolicySpec},
        units::StatusSet,
    },
    resilience::Mode,
    telemetry::{decisions::Step, metrics::Degraded, reason::Reason},
};

/// How a request has failed.
#[derive(Debug, Clone, Copy)]
struct Failure {
    trigger: Option<FallbackTrigger>,
    /// Whether an earlier answer may be given instead.
    is_error: bool,
    /// Whether the request may have run.
    may_have_run: bool,
    /// What the backend has answered, if it did.
    status: Option<u16>,
}

/// What came of a request: where its answer is from, and the answer.
type Outcome<'e> = Result<(Exchange<'e>, Answered), Rejection>;

/// Whether the policy has anything to answer instead.
pub(super) fn is_wanted(exchange: &Exchange<'_>) -> bool {
    let policy = &exchange.destination.policy;
    policy.stale.is_some() || policy.fallback.is_some()
}

/// Looks at how a request went, and answers something else if it failed and the policy has something.
pub(super) async fn instead<'e>(
    exchange: &Exchange<'e>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    held: &mut Held,
    outcome: Result<Answered, Rejection>,
) -> Outcome<'e> {
    let policy = &exchange.destination.policy;
    let failure = match &outcome {
        Ok(answered) => of_answer(policy, answered),
        Err(rejection) => of_refusal(policy, rejection),
    };
    let Some(failure) = failure else {
        return outcome.map(|answered| (*exchange, answered));
    };
    if let Some(stale) = earlier(exchange, client, failure, &outcome) {
        clear_away(exchange, body, outcome).await;
        return Err(stale);
    }
    let fallback = policy.fallback.as_ref().filter(|fallback| {
        failure
            .trigger
            .is_some_and(|trigger| fallback.triggers.contains(&trigger))
    });
    match fallback.map(|fallback| plan(exchange, client, body, fallback, failure)) {
        None | Some(Plan::Pass) => outcome.map(|answered| (*exchange, answered)),
        Some(Plan::Respond(instead)) => {
            let refusal = refusal(&outcome, progress);
            clear_away(exchange, body, outcome).await;
            Err(Rejection {
                instead: Some(Box::new(instead)),
                ..refusal
            })
        }
        Some(Plan::Ask(aside)) => {
            clear_away(exchange, body, outcome).await;
            // What it held of the first backend is free for others.
            *held = Held::default();
            progress.aside = Some(aside);
            progress.endpoint = None;
            let exchange = exchange.towards(&exchange.route.aside[aside]);
            ask(exchange, client, body, progress, held)
                .await
                .inspect_err(|rejection| notes::refused(&exchange, rejection))
        }
    }
}

enum Plan {
    /// What there is passes.
    Pass,
    /// This is answered.
    Respond(Instead),
    /// The backend with this index aside is asked.
    Ask(usize),
}

fn plan(
    exchange: &Exchange<'_>,
    client: &Client,
    body: &RequestBody,
    fallback: &FallbackSpec,
    failure: Failure,
) -> Plan {
    let plan = match &fallback.to {
        FallbackTo::Response { .. } if client.is_grpc() => Plan::Pass,
        FallbackTo::Response {
            status,
            content_type,
            body,
        } => Plan::Respond(Instead::Fallback {
            status: *status,
            content_type: content_type.clone(),
            body: body.clone(),
        }),
        FallbackTo::Backend(name) => {
            let may_repeat = !failure.may_have_run
                || client.asked().is_idempotent()
                || exchange
                    .destination
                    .policy
                    .retry
                    .config
                    .retry_non_idempotent;
            let is_other = exchange.destination.backend.spec.name != *name;
            let aside = exchange
                .route
                .aside
                .iter()
                .position(|aside| aside.backend.spec.name == *name);
            aside
                .filter(|_| may_repeat && is_other && body.is_replayable())
                .map_or(Plan::Pass, Plan::Ask)
        }
    };
    let (with, counted) = match &plan {
        Plan::Pass => return plan,
        Plan::Respond(_) => ("what the fallback says".to_owned(), Degraded::Response),
        Plan::Ask(aside) => (
            format!(
                "what {} says",
                exchange.route.aside[*aside].backend.spec.name
            ),
            Degraded::Backend,
        ),
    };
    let is_shadow = fallback.mode == Mode::Shadow;
    exchange.route.metrics.degraded(
        &exchange.worker.state.telemetry.metrics,
        if is_shadow { Degraded::Shadow } else { counted },
    );
    exchange.notes.push(Step::Degraded { with, is_shadow });
    if is_shadow { Plan::Pass } else { plan }
}

/// Asks another backend under its own policy, with a time of its own; only the client's deadline goes on.
async fn ask<'e>(
    exchange: Exchange<'e>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    held: &mut Held,
) -> Outcome<'e> {
    admission::control(&exchange, clock::now())?;
    held.place = admission::enter(&exchange, client).await?;
    let answered = attempt::in_place(
        &exchange,
        client,
        body,
        progress,
        &mut held.place,
        clock::now(),
    )
    .await?;
    Ok((exchange, answered))
}

/// The answer of the app's that is not passed on; its connection stays if its end is near.
async fn clear_away(
    exchange: &Exchange<'_>,
    body: &RequestBody,
    outcome: Result<Answered, Rejection>,
) {
    if let Ok(answered) = outcome {
        retrying::discard(exchange, body.is_done(), answered).await;
    }
}

fn earlier(
    exchange: &Exchange<'_>,
    client: &Client,
    failure: Failure,
    outcome: &Result<Answered, Rejection>,
) -> Option<Rejection> {
    let (kept, age, mode) = failure
        .is_error
        .then(|| stale::find(exchange, client))
        .flatten()?;
    let is_shadow = mode == Mode::Shadow;
    exchange.route.metrics.degraded(
        &exchange.worker.state.telemetry.metrics,
        if is_shadow {
            Degraded::Shadow
        } else {
            Degraded::Stale
        },
    );
    exchange.notes.push(Step::Degraded {
        with: format!("an answer from {} s ago", age.as_secs()),
        is_shadow,
    });
    if is_shadow {
        return None;
    }
    let why = match outcome {
        Ok(_) => failure.status.unwrap_or_default().to_string(),
        Err(rejection) => rejection.reason.token().to_owned(),
    };
    let mut fields = kept.headers.clone();
    headers::edit(&mut fields, &exchange.route.spec.filters.response_headers);
    let instead = Instead::Stale {
        fields,
        body: kept.body.clone(),
        age,
        now: failure.status,
    };
    Some(Rejection {
        instead: Some(Box::new(instead)),
        ..Rejection::by(Reason::Stale, why.into())
    })
}

/// The refusal that an answer of the app's becomes, or the one that there is.
fn refusal(outcome: &Result<Answered, Rejection>, progress: &Progress) -> Rejection {
    match outcome {
        Ok(_) => Rejection::by(Reason::RetriesExhausted, progress.endpoint_label()),
        Err(rejection) => Rejection {
            retry_after: rejection.retry_after,
            is_fatal: rejection.is_fatal,
            ..Rejection::by(rejection.reason, rejection.by.clone())
        },
    }
}

fn of_answer(policy: &PolicySpec, answered: &Answered) -> Option<Failure> {
    let head = answered.upstream.head()?;
    let failure = match answered
        .grpc_status
        .filter(|status| *status != 0 && head.status == 200)
    {
        _ if answered.is_upgrade => None,
        Some(status) => of_grpc(policy, status, grpc::status(&head.headers).is_none()),
        None => of_status(policy, head.status.as_u16()),
    };
    failure.map(|failure| Failure {
        may_have_run: failure.may_have_run && !answered.is_unprocessed,
        ..failure
    })
}

fn of_status(policy: &PolicySpec, status: u16) -> Option<Failure> {
    let codes = &policy.retry.codes;
    let is_exhausted = if *codes == StatusSet::default() {
        (502..=504).contains(&status)
    } else {
        codes.contains(status)
    };
    // RFC 5861 section 4 names the errors.
    let is_error = matches!(status, 500 | 502..=504);
    let trigger = is_exhausted.then_some(FallbackTrigger::RetriesExhausted);
    (is_exhausted || is_error).then_some(Failure {
        trigger,
        is_error,
        may_have_run: true,
        status: Some(status),
    })
}

/// A status that the policy names, given instead of an answer, is one of before the call runs; without any, only "unavailable" is a failure.
fn of_grpc(policy: &PolicySpec, status: u8, has_begun: bool) -> Option<Failure> {
    let codes = policy.retry.grpc_codes;
    let is_named = codes & (1 << status) != 0;
    let is_exhausted = is_named || (codes == 0 && status == grpc::UNAVAILABLE);
    is_exhausted.then_some(Failure {
        trigger: Some(FallbackTrigger::RetriesExhausted),
        is_error: false,
        may_have_run: has_begun || !is_named,
        status: None,
    })
}

fn of_refusal(policy: &PolicySpec, rejection: &Rejection) -> Option<Failure> {
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
            let failure = match rejection.instead.as_deref() {
                Some(Instead::Fault(FaultAnswer::Http(status))) => of_status(policy, *status),
                Some(Instead::Fault(FaultAnswer::Grpc(status))) => of_grpc(policy, *status, false),
                _ => None,
            };
            return failure.map(|failure| Failure {
                may_have_run: false,
                status: None,
                ..failure
            });
        }
        _ => return None,
    };
    Some(Failure {
        trigger: Some(trigger),
        is_error: true,
        may_have_run,
        status: None,
    })
}

//! What is answered when the backend cannot: an earlier answer, what the policy says, or what another backend says; in this order, because an answer
//! of the app's own is worth most.

use super::{
    attempt::{self, Answered},
    client::Client,
    rejection::{Instead, Rejection},
    request_body::RequestBody,
    serve::{Exchange, Progress},
    stale,
};
use crate::{
    clock,
    policy::{
        document::FallbackTrigger,
        snapshot::{FallbackTo, PolicySpec},
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
    /// What the backend has answered, if it did.
    status: Option<u16>,
}

/// Looks at how a request went, and answers something else if it failed and the policy has something. What is asked of another backend is relayed by
/// `relay` as if it came from the first.
pub(super) async fn instead<'e>(
    exchange: &Exchange<'e>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    outcome: Result<Answered, Rejection>,
) -> Result<(Exchange<'e>, Answered), Rejection> {
    let policy = &exchange.destination.policy;
    let failure = match &outcome {
        _ if policy.stale.is_none() && policy.fallback.is_none() => None,
        Ok(answered) => of_answer(policy, answered),
        Err(rejection) => of_refusal(rejection.reason),
    };
    let Some(failure) = failure else { return outcome.map(|answered| (*exchange, answered)) };
    if let Some(stale) = earlier(exchange, client, failure, &outcome) {
        return Err(stale);
    }
    let fallback = policy.fallback.as_ref().filter(|fallback| failure.trigger.is_some_and(|trigger| fallback.triggers.contains(&trigger)));
    let Some(fallback) = fallback else { return outcome.map(|answered| (*exchange, answered)) };
    let metrics = &exchange.worker.state.telemetry.metrics;
    if fallback.mode == Mode::Shadow {
        exchange.route.metrics.degraded(metrics, Degraded::Shadow);
        exchange.notes.push(Step::Degraded { with: "the fallback".to_owned(), is_shadow: true });
        return outcome.map(|answered| (*exchange, answered));
    }
    match &fallback.to {
        FallbackTo::Response { .. } if client.is_grpc() => outcome.map(|answered| (*exchange, answered)),
        FallbackTo::Response { status, content_type, body } => {
            exchange.route.metrics.degraded(metrics, Degraded::Response);
            exchange.notes.push(Step::Degraded { with: format!("what the fallback says, {status}"), is_shadow: false });
            let instead = Instead::Fallback { status: *status, content_type: content_type.clone(), body: body.clone() };
            Err(Rejection { instead: Some(instead), ..refusal(outcome, progress) })
        }
        FallbackTo::Backend(name) => {
            let aside = exchange.route.aside.iter().position(|aside| aside.backend.spec.name == *name);
            let Some(aside) = aside.filter(|_| body.is_replayable()) else { return outcome.map(|answered| (*exchange, answered)) };
            drop(outcome);
            exchange.route.metrics.degraded(metrics, Degraded::Backend);
            exchange.notes.push(Step::Degraded { with: format!("the backend {name} is asked"), is_shadow: false });
            progress.aside = Some(aside);
            let exchange = exchange.towards(&exchange.route.aside[aside]);
            // Under a policy of its own it has a time of its own; only the client's deadline goes on.
            let answered = attempt::until_answered(&exchange, client, body, progress, clock::now()).await?;
            Ok((exchange, answered))
        }
    }
}

fn earlier(exchange: &Exchange<'_>, client: &Client, failure: Failure, outcome: &Result<Answered, Rejection>) -> Option<Rejection> {
    let (kept, age, mode) = failure.is_error.then(|| stale::find(exchange, client)).flatten()?;
    let metrics = &exchange.worker.state.telemetry.metrics;
    if mode == Mode::Shadow {
        exchange.route.metrics.degraded(metrics, Degraded::Shadow);
        exchange.notes.push(Step::Degraded { with: format!("an answer from {} s ago", age.as_secs()), is_shadow: true });
        return None;
    }
    exchange.notes.push(Step::Degraded { with: format!("an answer from {} s ago", age.as_secs()), is_shadow: false });
    exchange.route.metrics.degraded(metrics, Degraded::Stale);
    let why = match outcome {
        Ok(_) => failure.status.unwrap_or_default().to_string(),
        Err(rejection) => rejection.reason.token().to_owned(),
    };
    Some(Rejection { instead: Some(Instead::Stale { kept, age, now: failure.status }), ..Rejection::by(Reason::Stale, why.into()) })
}

/// The refusal that an answer of the app's becomes, or the one that there is.
fn refusal(outcome: Result<Answered, Rejection>, progress: &Progress) -> Rejection {
    outcome.err().unwrap_or_else(|| {
        let by = progress.endpoint.as_ref().map(|endpoint| endpoint.label.clone()).unwrap_or_default();
        Rejection::by(Reason::RetriesExhausted, by)
    })
}

fn of_answer(policy: &PolicySpec, answered: &Answered) -> Option<Failure> {
    let status = answered.upstream.head()?.status.as_u16();
    if answered.is_upgrade {
        return None;
    }
    let is_exhausted = if policy.retry.codes == StatusSet::default() { (502..=504).contains(&status) } else { policy.retry.codes.contains(status) };
    // RFC 5861 section 4 names the errors.
    let is_error = matches!(status, 500 | 502..=504);
    let trigger = is_exhausted.then_some(FallbackTrigger::RetriesExhausted);
    (is_exhausted || is_error).then_some(Failure { trigger, is_error, status: Some(status) })
}

fn of_refusal(reason: Reason) -> Option<Failure> {
    let trigger = match reason {
        Reason::BreakerOpen => FallbackTrigger::CircuitOpen,
        Reason::ConnectTimeout | Reason::UpstreamTimeout | Reason::RequestTimeout => FallbackTrigger::Timeout,
        Reason::ConnectFailed | Reason::TlsFailed | Reason::UpstreamReset | Reason::UpstreamProtocolError | Reason::FaultInjected => FallbackTrigger::RetriesExhausted,
        Reason::NoHealthyEndpoint => FallbackTrigger::NoHealthyEndpoint,
        Reason::AdmissionControl | Reason::ConcurrencyLimit | Reason::QueueTimeout | Reason::ConnectionLimit | Reason::Shed => FallbackTrigger::Overload,
        _ => return None,
    };
    Some(Failure { trigger: Some(trigger), is_error: true, status: None })
}

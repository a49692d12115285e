//! Who gets in: admission control, then rate limits, then concurrency.
//!
//! The order matters. What is cheap and private is asked before what is dear and shared: a client's own bucket before the one
//! of all (the compiler of policies sorts the rules so), and a place in flight last, because it may have to be waited for.

use std::{future::Future, sync::Arc, time::Instant};

use super::{
    attempt::{Answered, gone},
    client::Client,
    grpc,
    rejection::Rejection,
    serve::Exchange,
};
use crate::{
    clock,
    policy::{document::Direction, snapshot::ProtectionSpec},
    resilience::{Mode, shed::Class},
    state::{
        admission::Verdict,
        limit::{Entry, LimitGuard},
        live::RouteState,
    },
    telemetry::{metrics::signal_name, reason::Reason},
};

/// Lets in who may use the route at all.
pub(super) fn allowed(route: &RouteState, client: &Client) -> Result<(), Rejection> {
    let Some(allowed) = &route.spec.allowed else { return Ok(()) };
    let identity = client.peer.identity.as_deref().unwrap_or_default();
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => !identity.is_empty() && identity.starts_with(beginning),
        None => identity == pattern,
    };
    if allowed.iter().any(|pattern| fits(pattern)) { Ok(()) } else { Err(Rejection::by(Reason::NotAllowed, route.spec.name.clone())) }
}

/// Refuses a share of the requests to a backend that fails.
pub(super) fn control(exchange: &Exchange<'_>, now: Instant) -> Result<(), Rejection> {
    let Some(control) = &exchange.destination.admission else { return Ok(()) };
    match control.ask(fastrand::f64(), now) {
        Verdict::Admitted => Ok(()),
        Verdict::WouldRefuse => {
            exchange.would_refuse(Reason::AdmissionControl, control.name());
            Ok(())
        }
        Verdict::Refused => Err(Rejection::by(Reason::AdmissionControl, control.name().clone()).after(std::time::Duration::from_secs(1))),
    }
}

/// Refuses who matters less while the instance is short of something; the class of who does not. Outbound requests are none of it: they finish what
/// was let in.
pub(super) fn protect(exchange: &Exchange<'_>, client: &Client) -> Result<Option<Class>, Rejection> {
    let inbound = |_: &&ProtectionSpec| exchange.route.spec.direction == Direction::Inbound;
    let Some(spec) = exchange.live.snapshot.protection.as_ref().filter(inbound) else { return Ok(None) };
    let class = class(spec, client);
    let protection = &exchange.worker.state.protection;
    if class.is_refused_at(protection.level()) {
        if spec.mode == Mode::Enforce {
            let signal = protection.cause().map_or("", signal_name);
            return Err(shed(signal, spec, class));
        }
        exchange.would_refuse(Reason::Shed, &Arc::default());
    }
    Ok((spec.mode == Mode::Enforce).then_some(class))
}

/// The class that a request says it is of.
fn class(spec: &ProtectionSpec, client: &Client) -> Class {
    let said = client.text(&spec.header).unwrap_or_default().trim();
    Class::ALL.into_iter().zip(&spec.classes).find(|(_, name)| name.eq_ignore_ascii_case(said)).map_or(Class::Normal, |(class, _)| class)
}

fn shed(by: &str, spec: &ProtectionSpec, class: Class) -> Rejection {
    Rejection::by(Reason::Shed, format!("{by}:{}", spec.classes[class as usize]).into()).after(std::time::Duration::from_secs(1))
}

/// Takes a place in flight, or waits for one.
pub(super) async fn enter(exchange: &Exchange<'_>, client: &mut Client, class: Option<Class>) -> Result<Option<LimitGuard>, Rejection> {
    let (Some(limit), Some(spec)) = (&exchange.destination.limit, &exchange.destination.policy.limits) else {
        return Ok(None);
    };
    let refused = |reason| Rejection::by(reason, Arc::clone(limit.name())).after(std::time::Duration::from_secs(1));
    match limit.enter(class) {
        Entry::Admitted(guard) => Ok(Some(guard)),
        Entry::WouldRefuse(guard) => {
            exchange.would_refuse(Reason::ConcurrencyLimit, limit.name());
            Ok(Some(guard))
        }
        Entry::Refused => Err(refused(Reason::ConcurrencyLimit)),
        Entry::Shed => Err(match (&exchange.live.snapshot.protection, class) {
            (Some(protection), Some(class)) => shed(limit.name(), protection, class),
            _ => refused(Reason::ConcurrencyLimit),
        }),
        Entry::Queued(waiting) => {
            let turn = unless_gone(client, waiting);
            let turn = clock::within(Some(spec.pending_timeout), turn).await;
            turn.unwrap_or_else(|_| Err(refused(Reason::QueueTimeout))).map(Some)
        }
    }
}

/// Tells an adaptive limit how long the backend took. What was tried again took longer than the backend did, and what never came to it
/// says nothing.
pub(super) fn learn(place: &LimitGuard, entered: Instant, answered: &Result<Answered, Rejection>, attempts: u32) {
    let is_drop = match answered {
        Ok(Answered { grpc_status: Some(status), .. }) if *status != 0 => {
            if !matches!(*status, grpc::UNAVAILABLE | grpc::RESOURCE_EXHAUSTED) {
                return;
            }
            true
        }
        Ok(answered) => match answered.upstream.head().map(|head| head.status.as_u16()) {
            Some(429 | 503) => true,
            // How soon a backend fails says nothing about how long it takes to work.
            Some(500..) | None => return,
            Some(_) => false,
        },
        Err(rejection) if matches!(rejection.reason, Reason::UpstreamTimeout | Reason::RequestTimeout) => true,
        Err(_) => return,
    };
    if is_drop || attempts == 1 {
        let now = clock::now();
        place.note(now.saturating_duration_since(entered), is_drop, now);
    }
}

/// Waits for something as long as the client does. While a body is on its way, reading from the client would take of it; then it is not
/// watched.
pub(super) async fn unless_gone<T>(client: &mut Client, what: impl Future<Output = T>) -> Result<T, Rejection> {
    let may_watch = client.is_body_done();
    tokio::select! {
        biased;
        done = what => Ok(done),
        reason = client.gone(), if may_watch => Err(gone(reason)),
    }
}

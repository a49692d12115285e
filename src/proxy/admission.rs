//! Who gets in: who matters while the instance is short of something, then admission control, rate limits, and concurrency.
//!
//! The order matters. What is cheap and private is asked before what is dear and shared: a client's own bucket before the one
//! of all (the compiler of policies sorts the rules so), and a place in flight last, because it may have to be waited for.

use std::{future::Future, sync::Arc, time::Instant};

use super::{
    attempt::gone,
    client::Client,
    rejection::{Rejection, SOON},
    serve::Exchange,
    signs,
};
use crate::{
    clock,
    policy::{
        document::Direction,
        snapshot::{CheckSpec, ProtectionSpec},
    },
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
    let Some(allowed) = &route.spec.allowed else {
        return Ok(());
    };
    let identity = client.peer.identity.as_deref().unwrap_or_default();
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => !identity.is_empty() && identity.starts_with(beginning),
        None => identity == pattern,
    };
    if allowed.iter().any(|pattern| fits(pattern)) {
        Ok(())
    } else {
        Err(Rejection::by(Reason::NotAllowed, route.spec.name.clone()))
    }
}

/// Refuses a share of the requests to a backend that fails.
pub(super) fn control(exchange: &Exchange<'_>, now: Instant) -> Result<(), Rejection> {
    let Some(control) = &exchange.destination.admission else {
        return Ok(());
    };
    match control.ask(fastrand::f64(), now) {
        Verdict::Admitted => Ok(()),
        Verdict::WouldRefuse => {
            exchange.would_refuse(Reason::AdmissionControl, control.name());
            Ok(())
        }
        Verdict::Refused => {
            Err(Rejection::by(Reason::AdmissionControl, control.name().clone()).after(SOON))
        }
    }
}

/// Refuses who matters less while the instance is short of something. Outbound requests are none of it: they finish what was let in. Nor are checks of the
/// app's health: who cannot ask it would end it.
pub(super) fn protect(exchange: &Exchange<'_>, client: &Client) -> Result<(), Rejection> {
    let Some(spec) = protection_of(exchange) else {
        return Ok(());
    };
    let protection = &exchange.worker.state.protection;
    let class = class(spec, client);
    if protection.refuses(class, fastrand::f64) && !is_health_check(exchange, client) {
        if spec.mode == Mode::Enforce {
            return Err(shed(
                protection.cause().map_or("", signal_name),
                spec,
                class,
            ));
        }
        exchange.would_refuse(Reason::Shed, &Arc::default());
    }
    Ok(())
}

fn protection_of<'e>(exchange: &'e Exchange<'_>) -> Option<&'e ProtectionSpec> {
    exchange
        .live
        .snapshot
        .protection
        .as_ref()
        .filter(|_| exchange.route.spec.direction == Direction::Inbound)
}

fn is_health_check(exchange: &Exchange<'_>, client: &Client) -> bool {
    let path = exchange.target.path();
    let checked = exchange
        .destination
        .backend
        .spec
        .check
        .as_ref()
        .and_then(CheckSpec::path)
        .and_then(|checked| checked.split('?').next());
    checked == Some(path) || (client.is_grpc() && path.starts_with("/grpc.health.v1.Health/"))
}

/// Leaves to the other instances what is more than this one takes while it is new. Callers that know its curve send it no more than that.
pub(super) fn warm(
    exchange: &Exchange<'_>,
    client: &Client,
    now: Instant,
) -> Result<(), Rejection> {
    let warm_up = exchange
        .live
        .snapshot
        .lifecycle
        .warm_up
        .as_ref()
        .filter(|_| exchange.route.spec.direction == Direction::Inbound);
    let Some(warm_up) = warm_up else {
        return Ok(());
    };
    let state = &exchange.worker.state;
    let Some(part) = state.lifecycle.youth.warmth(&warm_up.config, now) else {
        return Ok(());
    };
    // Who has nowhere else to go is served, however new this instance is; and where all are new, somebody has to begin.
    let may_go_elsewhere = || state.replicas.has_warm(exchange.live, now);
    if client.head().headers.contains_key(signs::WEIGHED)
        || is_health_check(exchange, client)
        || !may_go_elsewhere()
        || state.lifecycle.youth.takes(part)
    {
        return Ok(());
    }
    if warm_up.mode == Mode::Enforce {
        return Err(Rejection::of(Reason::WarmingUp).after(SOON));
    }
    exchange.would_refuse(Reason::WarmingUp, &Arc::default());
    Ok(())
}

/// The class that a request says it is of.
fn class(spec: &ProtectionSpec, client: &Client) -> Class {
    let said = client.text(&spec.header).unwrap_or_default().trim();
    Class::ALL
        .into_iter()
        .zip(&spec.classes)
        .find(|(_, name)| name.eq_ignore_ascii_case(said))
        .map_or(Class::Normal, |(class, _)| class)
}

fn shed(by: &str, spec: &ProtectionSpec, class: Class) -> Rejection {
    Rejection::by(
        Reason::Shed,
        format!("{by}:{}", spec.classes[class as usize]).into(),
    )
    .after(SOON)
}

/// Takes a place in flight, or waits for one.
pub(super) async fn enter(
    exchange: &Exchange<'_>,
    client: &mut Client,
) -> Result<Option<LimitGuard>, Rejection> {
    let (Some(limit), Some(spec)) = (
        &exchange.destination.limit,
        &exchange.destination.policy.limits,
    ) else {
        return Ok(None);
    };
    let protection = protection_of(exchange)
        .filter(|protection| protection.limits_classes && !is_health_check(exchange, client));
    let class = protection.map(|protection| class(protection, client));
    let is_enforced = protection.is_some_and(|protection| protection.mode == Mode::Enforce);
    if class.is_some_and(|class| !is_enforced && !limit.has_room_for(class)) {
        exchange.would_refuse(Reason::Shed, limit.name());
    }
    let refused = |reason| Rejection::by(reason, Arc::clone(limit.name())).after(SOON);
    match limit.enter(class.filter(|_| is_enforced).unwrap_or(Class::Critical)) {
        Entry::Admitted(guard) => Ok(Some(guard)),
        Entry::WouldRefuse(guard) => {
            exchange.would_refuse(Reason::ConcurrencyLimit, limit.name());
            Ok(Some(guard))
        }
        Entry::Refused => Err(refused(Reason::ConcurrencyLimit)),
        Entry::Shed => Err(match (protection, class) {
            (Some(protection), Some(class)) => shed(limit.name(), protection, class),
            _ => refused(Reason::ConcurrencyLimit),
        }),
        Entry::Queued(waiting) => {
            let turn = unless_gone(client, waiting);
            let turn = clock::within(Some(spec.pending_timeout), turn).await;
            turn.unwrap_or_else(|_| Err(refused(Reason::QueueTimeout)))
                .map(Some)
        }
    }
}

/// Waits for something as long as the client does. While a body is on its way, reading from the client would take of it; then it is not
/// watched.
pub(super) async fn unless_gone<T>(
    client: &mut Client,
    what: impl Future<Output = T>,
) -> Result<T, Rejection> {
    let may_watch = client.is_body_done();
    tokio::select! {
        biased;
        done = what => Ok(done),
        reason = client.gone(), if may_watch => Err(gone(reason)),
    }
}

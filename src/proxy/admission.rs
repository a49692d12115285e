//! Who gets in: who matters while the instance is short of something, then admission control, rate limits, and concurrency.
//!
//! The order matters. What is cheap and private is asked before what is dear and shared: a client's own bucket before the one
//! of all (the compiler of policies sorts the rules so), and a place in flight last, because it may have to be waited for.

use std::{future::Future, sync::Arc, time::Instant};

use crate::{
    clock,
    policy::{
        document::Direction,
        snapshot::{ActiveCheckSpec, ProtectionSpec},
    },
    proxy::{
        attempt::fatal_rejection,
        client::Client,
        rejection::{DEFAULT_RETRY_AFTER, Rejection},
        serve::RequestContext,
        signs,
    },
    resilience::{Mode, shed::PriorityClass},
    state::{
        active_policy::RouteState,
        policies::{
            admission_control::AdmissionDecision,
            concurrency_limit::{AcquireOutcome, ConcurrencyPermit},
        },
    },
    telemetry::{metrics::protection_signal_name, reason::Reason},
};

/// Lets in who may use the route at all.
pub(super) fn check_identity(route: &RouteState, client: &Client) -> Result<(), Rejection> {
    let Some(allowed_identities) = &route.spec.allowed_identities else {
        return Ok(());
    };
    let identity = client
        .identity
        .certificate_identity
        .as_deref()
        .unwrap_or_default();
    let matches_identity = |pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => !identity.is_empty() && identity.starts_with(prefix),
        None => identity == pattern,
    };
    if allowed_identities
        .iter()
        .any(|pattern| matches_identity(pattern))
    {
        Ok(())
    } else {
        Err(Rejection::new(Reason::NotAllowed, route.spec.name.clone()))
    }
}

/// Refuses a share of the requests to a backend that fails.
pub(super) fn check_admission_control(
    context: &RequestContext<'_>,
    now: Instant,
) -> Result<(), Rejection> {
    let Some(admission_control) = &context.destination.admission_control else {
        return Ok(());
    };
    match admission_control.decide(fastrand::f64(), now) {
        AdmissionDecision::Admitted => Ok(()),
        AdmissionDecision::WouldReject => {
            context.record_shadow_rejection(Reason::AdmissionControl, admission_control.name());
            Ok(())
        }
        AdmissionDecision::Rejected => Err(Rejection::new(
            Reason::AdmissionControl,
            admission_control.name().clone(),
        )
        .with_retry_after(DEFAULT_RETRY_AFTER)),
    }
}

/// Refuses who matters less while the instance is short of something. Outbound requests are none of it: they finish what was let in. Nor are checks of the
/// app's health: who cannot ask it would end it.
pub(super) fn check_load_shedding(
    context: &RequestContext<'_>,
    client: &Client,
) -> Result<(), Rejection> {
    let Some(spec) = inbound_protection(context) else {
        return Ok(());
    };
    let protection = &context.worker.state.protection;
    let priority_class = priority_class(spec, client);
    if protection.should_shed(priority_class, fastrand::f64) && !is_health_check(context, client) {
        if spec.mode == Mode::Enforce {
            return Err(shed_rejection(
                protection.cause().map_or("", protection_signal_name),
                spec,
                priority_class,
            ));
        }
        context.record_shadow_rejection(Reason::Shed, &Arc::default());
    }
    Ok(())
}

fn inbound_protection<'e>(context: &'e RequestContext<'_>) -> Option<&'e ProtectionSpec> {
    context
        .active_policy
        .snapshot
        .protection
        .as_ref()
        .filter(|_| context.route.spec.direction == Direction::Inbound)
}

fn is_health_check(context: &RequestContext<'_>, client: &Client) -> bool {
    let path = context.request_target.path();
    let checked_path = context
        .destination
        .backend
        .spec
        .active_check
        .as_ref()
        .and_then(ActiveCheckSpec::path)
        .and_then(|checked_path| checked_path.split('?').next());
    checked_path == Some(path) || (client.is_grpc() && path.starts_with("/grpc.health.v1.Health/"))
}

/// Leaves to the other instances what is more than this one takes while it is new. Callers that know its curve send it no more than that.
pub(super) fn check_warm_up(
    context: &RequestContext<'_>,
    client: &Client,
    now: Instant,
) -> Result<(), Rejection> {
    let warm_up = context
        .active_policy
        .snapshot
        .lifecycle
        .warm_up
        .as_ref()
        .filter(|_| context.route.spec.direction == Direction::Inbound);
    let Some(warm_up) = warm_up else {
        return Ok(());
    };
    let state = &context.worker.state;
    let Some(warm_up_factor) = state
        .lifecycle
        .instance_age
        .warm_up_factor(&warm_up.config, now)
    else {
        return Ok(());
    };
    // Who has nowhere else to go is served, however new this instance is; and where all are new, somebody has to begin.
    let has_warm_replica = || state.replicas.has_warm_replica(context.active_policy, now);
    if client.head().headers.contains_key(signs::WEIGHED)
        || is_health_check(context, client)
        || !has_warm_replica()
        || state.lifecycle.instance_age.admits(warm_up_factor)
    {
        return Ok(());
    }
    if warm_up.mode == Mode::Enforce {
        return Err(Rejection::from_reason(Reason::WarmingUp).with_retry_after(DEFAULT_RETRY_AFTER));
    }
    context.record_shadow_rejection(Reason::WarmingUp, &Arc::default());
    Ok(())
}

/// The class that a request says it is of.
fn priority_class(spec: &ProtectionSpec, client: &Client) -> PriorityClass {
    let header_value = client
        .header_str(&spec.priority_header)
        .unwrap_or_default()
        .trim();
    PriorityClass::ALL
        .into_iter()
        .zip(&spec.priority_classes)
        .find(|(_, name)| name.eq_ignore_ascii_case(header_value))
        .map_or(PriorityClass::Normal, |(class, _)| class)
}

fn shed_rejection(
    rejected_by: &str,
    spec: &ProtectionSpec,
    priority_class: PriorityClass,
) -> Rejection {
    Rejection::new(
        Reason::Shed,
        format!(
            "{rejected_by}:{}",
            spec.priority_classes[priority_class as usize]
        )
        .into(),
    )
    .with_retry_after(DEFAULT_RETRY_AFTER)
}

/// Takes a place in flight, or waits for one.
pub(super) async fn acquire_concurrency_permit(
    context: &RequestContext<'_>,
    client: &mut Client,
) -> Result<Option<ConcurrencyPermit>, Rejection> {
    let (Some(limit), Some(spec)) = (
        &context.destination.concurrency_limit,
        &context.destination.policy.connection_limits,
    ) else {
        return Ok(None);
    };
    let protection = inbound_protection(context).filter(|protection| {
        protection.limits_concurrency_by_class && !is_health_check(context, client)
    });
    let priority_class = protection.map(|protection| priority_class(protection, client));
    let is_enforced = protection.is_some_and(|protection| protection.mode == Mode::Enforce);
    if priority_class
        .is_some_and(|priority_class| !is_enforced && !limit.has_room_for(priority_class))
    {
        context.record_shadow_rejection(Reason::Shed, limit.name());
    }
    let rejection = |reason| {
        Rejection::new(reason, Arc::clone(limit.name())).with_retry_after(DEFAULT_RETRY_AFTER)
    };
    match limit.try_acquire(
        priority_class
            .filter(|_| is_enforced)
            .unwrap_or(PriorityClass::Critical),
    ) {
        AcquireOutcome::Admitted(guard) => Ok(Some(guard)),
        AcquireOutcome::WouldReject(guard) => {
            context.record_shadow_rejection(Reason::ConcurrencyLimit, limit.name());
            Ok(Some(guard))
        }
        AcquireOutcome::Rejected => Err(rejection(Reason::ConcurrencyLimit)),
        AcquireOutcome::Shed => Err(match (protection, priority_class) {
            (Some(protection), Some(priority_class)) => {
                shed_rejection(limit.name(), protection, priority_class)
            }
            _ => rejection(Reason::ConcurrencyLimit),
        }),
        AcquireOutcome::Queued(queue_wait) => {
            let acquired = while_client_connected(client, queue_wait);
            let acquired = clock::timeout(Some(spec.pending_timeout), acquired).await;
            acquired
                .unwrap_or_else(|_| Err(rejection(Reason::QueueTimeout)))
                .map(Some)
        }
    }
}

/// Waits for something as long as the client does. While a body is on its way, reading from the client would take of it; then it is not
/// watched.
pub(super) async fn while_client_connected<T>(
    client: &mut Client,
    future: impl Future<Output = T>,
) -> Result<T, Rejection> {
    let can_watch_client = client.is_body_done();
    tokio::select! {
        biased;
        output = future => Ok(output),
        reason = client.closed(), if can_watch_client => Err(fatal_rejection(reason)),
    }
}

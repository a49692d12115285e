//! The concurrency limit of a backend: requests above the limit wait in a queue or are
//! rejected.
//!
//! The module does not know how the limit is chosen. `state::policies::concurrency_limit` keeps
//! the limit, its queue and its adaptation.

use std::sync::Arc;

use crate::{
    clock,
    proxy::{
        admission::{
            health_requests::is_health_check,
            load_shedding::{inbound_protection, priority_class, shed_rejection},
        },
        downstream::task::RequestTask,
        request::{
            evidence,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
        },
    },
    resilience::{Mode, shed::PriorityClass},
    state::policies::concurrency_limit::{AcquireOutcome, ConcurrencyPermit},
    telemetry::reason::Reason,
};

/// Acquires a permit of the concurrency limit, waiting at most the pending timeout in its
/// queue.
///
/// Returns `None` if the destination has no limit. If the protection policy limits concurrency
/// by priority class, a low class is rejected before the limit is reached.
///
/// # Errors
/// A rejection if the limit is reached and the queue is full, the pending timeout ends, the
/// priority class is shed, or the client closes.
pub(crate) async fn acquire_permit(
    task: &mut RequestTask<'_>,
) -> Result<Option<ConcurrencyPermit>, Rejection> {
    let context = &task.context;
    let (Some(limit), Some(spec)) = (
        &context.destination.policy_states.concurrency_limit,
        &context.destination.policy.connection_limits,
    ) else {
        return Ok(None);
    };
    let request = task.client.request_view();
    let protection = inbound_protection(context).filter(|protection| {
        protection.limits_concurrency_by_class && !is_health_check(context, &request)
    });
    let priority_class = protection.map(|protection| priority_class(protection, &request));
    let is_enforced = protection.is_some_and(|protection| protection.mode == Mode::Enforce);
    if priority_class
        .is_some_and(|priority_class| !is_enforced && !limit.has_room_for(priority_class))
    {
        evidence::record_shadow_rejection(
            context,
            &Rejection::new(Reason::Shed, limit.name().clone()),
        );
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
            evidence::record_shadow_rejection(
                context,
                &Rejection::new(Reason::ConcurrencyLimit, limit.name().clone()),
            );
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
            let acquired = task.while_connected(queue_wait);
            let acquired = clock::timeout(Some(spec.pending_timeout), acquired).await;
            acquired
                .unwrap_or_else(|_| Err(rejection(Reason::QueueTimeout)))
                .map(Some)
        }
    }
}

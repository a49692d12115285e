//! Decides which requests are sent to a backend: the checks before the first attempt, in order.
//!
//! Cheap checks precede expensive ones, and local state precedes state that instances share.
//! The bucket of a single client precedes the bucket of all clients, because the policy
//! compiler sorts the rules so. The concurrency permit follows the rate limits, because a
//! request may wait for it. Fault injection is last, so that injected faults affect only
//! admitted requests.
//!
//! The modules here do not know how a limit works. Its state is in `state::policies`.

mod admission_control;
pub(crate) mod allow_list;
pub(crate) mod concurrency;
pub(crate) mod fault_injection;
mod global_rate_limits;
mod health_requests;
mod load_shedding;
mod memory;
mod rate_limit_rules;
pub(crate) mod rate_limits;
mod warm_up;

use std::time::Instant;

use crate::{
    clock,
    proxy::{downstream::task::RequestTask, request::rejection::Rejection},
    state::active_policy::DestinationState,
};

/// Runs all checks of a routed request and stores the permits that they grant in the task.
///
/// # Errors
/// The rejection of the first check that does not admit the request.
pub(crate) async fn admit(task: &mut RequestTask<'_>) -> Result<(), Rejection> {
    let now = task.record.started_at;
    memory::check(&task.context, &task.request())?;
    warm_up::check(&task.context, &task.request(), now)?;
    load_shedding::check(&task.context, &task.request())?;
    admission_control::check(&task.context, now)?;
    rate_limits::admit(task, now).await?;
    task.permits.concurrency = concurrency::acquire_permit(task).await?;
    if let Some(fault) = &task.context.route.spec.fault_injection {
        task.permits.fault = Box::pin(fault_injection::inject(task, fault)).await?;
    }
    Ok(())
}

/// Runs the checks that depend on the backend, for a request that is sent to a fallback backend.
///
/// # Errors
/// The rejection of the first check that does not admit the request.
pub(crate) async fn admit_to_backend(task: &mut RequestTask<'_>) -> Result<(), Rejection> {
    admission_control::check(&task.context, clock::now())?;
    task.permits.concurrency = concurrency::acquire_permit(task).await?;
    Ok(())
}

/// Returns whether a copy of a request may be sent to a destination.
pub(crate) fn admits_copy(destination: &DestinationState, now: Instant) -> bool {
    admission_control::admits_copy(destination, now)
}

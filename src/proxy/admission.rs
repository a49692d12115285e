//! Which requests are sent on: the checks before the first attempt, in their order.
//!
//! Cheap and private checks stand before expensive and shared ones. A client's own bucket is asked before the bucket of all
//! clients (the policy compiler sorts the rules so). The concurrency permit comes last, because a request may wait for it.

pub(crate) mod admission_control;
pub(crate) mod allow_list;
pub(crate) mod concurrency;
pub(crate) mod fault_injection;
mod global_rate_limits;
mod health_requests;
mod load_shedding;
mod rate_limit_rules;
pub(crate) mod rate_limits;
mod warm_up;

use crate::proxy::{downstream::task::RequestTask, request::rejection::Rejection};

/// Runs all checks of a routed request, and leaves the permits that they granted in the task.
///
/// # Errors
/// The rejection of the first check that does not admit the request.
pub(crate) async fn admit(task: &mut RequestTask<'_>) -> Result<(), Rejection> {
    let now = task.record.started_at;
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

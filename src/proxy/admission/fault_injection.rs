//! Fault injection: a share of the requests is delayed or aborted until the end time of the
//! policy.
//!
//! The module draws which requests are affected. It does not write the aborted response.

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    policy::sections::fault_injection::FaultInjectionSpec,
    proxy::{
        downstream::task::RequestTask,
        request::{
            evidence,
            rejection::{Rejection, ResponseOverride},
        },
    },
    resilience::Mode,
    telemetry::{decision::Decision, reason::Reason},
};

/// Draws a fault for a request and injects it.
///
/// A delay returns a permit that counts the request as affected until it ends. No fault is
/// injected after the end time of the policy, in shadow mode, or while no permit is free.
/// Shadow mode only records what it would have injected.
///
/// # Errors
/// The rejection of an aborted request, or of a client that closed during the delay.
pub(crate) async fn inject(
    task: &mut RequestTask<'_>,
    fault: &FaultInjectionSpec,
) -> Result<Option<OwnedSemaphorePermit>, Rejection> {
    let context = task.context;
    let delay = fault
        .delay
        .filter(|(_, share)| fastrand::f64() < share.value());
    let abort = fault
        .abort
        .filter(|(_, share)| fastrand::f64() < share.value());
    if delay.is_none() && abort.is_none() || clock::wall_time() >= fault.until {
        return Ok(None);
    }
    let Ok(permit) = context.route.fault_permits.clone().try_acquire_owned() else {
        return Ok(None);
    };
    if fault.mode == Mode::Shadow {
        evidence::record_shadow_rejection(
            &context,
            &Rejection::new(Reason::FaultInjected, context.route.spec.name.clone()),
        );
        return Ok(None);
    }
    if let Some((delay, _)) = delay {
        context
            .decision_trace
            .record(Decision::Delayed { by: delay });
        task.while_connected(clock::sleep(delay)).await?;
    }
    match abort {
        Some((abort_status, _)) => Err(Rejection::new(
            Reason::FaultInjected,
            context.route.spec.name.clone(),
        )
        .with_override(ResponseOverride::Fault(abort_status))),
        None => Ok(Some(permit)),
    }
}

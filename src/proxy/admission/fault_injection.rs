//! Faults on purpose: some requests are late, some fail, until the time that the policy gives.

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    policy::snapshot::FaultInjectionSpec,
    proxy::{
        downstream::task::RequestTask,
        request::{
            evidence,
            rejection::{Rejection, ResponseOverride},
        },
    },
    resilience::Mode,
    telemetry::{decision_log::Decision, reason::Reason},
};

/// Does to a request what the policy says. The place among those under a fault is held until the request ends.
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
            Reason::FaultInjected,
            &context.route.spec.name,
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

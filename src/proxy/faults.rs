//! Faults on purpose: some requests are late, some fail, until the time that the policy gives.

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    policy::snapshot::FaultInjectionSpec,
    proxy::{
        admission,
        client::Client,
        rejection::{Rejection, ResponseOverride},
        serve::RequestContext,
    },
    resilience::Mode,
    telemetry::{decision_log::Decision, reason::Reason},
};

/// Does to a request what the policy says. The place among those under a fault is held until the request ends.
pub(super) async fn inject(
    context: &RequestContext<'_>,
    fault: &FaultInjectionSpec,
    client: &mut Client,
) -> Result<Option<OwnedSemaphorePermit>, Rejection> {
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
        context.record_shadow_rejection(Reason::FaultInjected, &context.route.spec.name);
        return Ok(None);
    }
    if let Some((delay, _)) = delay {
        context
            .decision_trace
            .record(Decision::Delayed { by: delay });
        admission::while_client_connected(client, clock::sleep(delay)).await?;
    }
    match abort {
        Some((abort_status, _)) => Err(Rejection {
            response_override: Some(Box::new(ResponseOverride::Fault(abort_status))),
            ..Rejection::new(Reason::FaultInjected, context.route.spec.name.clone())
        }),
        None => Ok(Some(permit)),
    }
}

//! Faults on purpose: some requests are late, some fail, until the time that the policy gives.

use tokio::sync::OwnedSemaphorePermit;

use super::{
    admission,
    client::Client,
    rejection::{Instead, Rejection},
    serve::Exchange,
};
use crate::{
    clock,
    policy::snapshot::FaultSpec,
    resilience::Mode,
    telemetry::{decisions::Step, reason::Reason},
};

/// Does to a request what the policy says. The place among those under a fault is held until the request ends.
pub(super) async fn inject(
    exchange: &Exchange<'_>,
    fault: &FaultSpec,
    client: &mut Client,
) -> Result<Option<OwnedSemaphorePermit>, Rejection> {
    let delay = fault
        .delay
        .filter(|(_, share)| fastrand::f64() < share.value());
    let abort = fault
        .abort
        .filter(|(_, share)| fastrand::f64() < share.value());
    if delay.is_none() && abort.is_none() || clock::wall() >= fault.until {
        return Ok(None);
    }
    let Ok(place) = exchange.route.faults.clone().try_acquire_owned() else {
        return Ok(None);
    };
    if fault.mode == Mode::Shadow {
        exchange.would_refuse(Reason::FaultInjected, &exchange.route.spec.name);
        return Ok(None);
    }
    if let Some((delay, _)) = delay {
        exchange.notes.push(Step::Delayed { by: delay });
        admission::unless_gone(client, clock::sleep(delay)).await?;
    }
    match abort {
        Some((answer, _)) => Err(Rejection {
            instead: Some(Box::new(Instead::Fault(answer))),
            ..Rejection::by(Reason::FaultInjected, exchange.route.spec.name.clone())
        }),
        None => Ok(Some(place)),
    }
}

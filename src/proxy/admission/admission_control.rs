//! Admission control: while a backend fails, a share of its requests is rejected (Google SRE
//! book, "Handling Overload").
//!
//! The module does not compute the share. `AdmissionState` derives it from recent results.

use std::time::Instant;

use crate::{
    proxy::request::{
        context::RequestContext,
        evidence,
        rejection::{DEFAULT_RETRY_AFTER, Rejection},
    },
    state::policies::admission_control::AdmissionDecision,
    telemetry::reason::Reason,
};

/// Rejects a share of the requests to a failing backend.
///
/// In shadow mode a rejection is recorded, and the request is admitted.
pub(crate) fn check(context: &RequestContext<'_>, now: Instant) -> Result<(), Rejection> {
    let Some(admission_control) = &context.destination.admission_control else {
        return Ok(());
    };
    match admission_control.decide(fastrand::f64(), now) {
        AdmissionDecision::Admitted => Ok(()),
        AdmissionDecision::WouldReject => {
            evidence::record_shadow_rejection(
                context,
                Reason::AdmissionControl,
                admission_control.name(),
            );
            Ok(())
        }
        AdmissionDecision::Rejected => Err(Rejection::new(
            Reason::AdmissionControl,
            admission_control.name().clone(),
        )
        .with_retry_after(DEFAULT_RETRY_AFTER)),
    }
}

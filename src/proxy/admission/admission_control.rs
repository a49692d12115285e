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
    state::{active_policy::DestinationState, policies::admission_control::AdmissionDecision},
    telemetry::reason::Reason,
};

/// Rejects a share of the requests to a failing backend.
///
/// In shadow mode a rejection is recorded, and the request is admitted.
///
/// # Errors
/// The rejection, with the success rate that caused it.
pub(super) fn check(context: &RequestContext<'_>, now: Instant) -> Result<(), Rejection> {
    let Some(admission_control) = &context.destination.policy_states.admission_control else {
        return Ok(());
    };
    let (numbers, is_shadow) = match admission_control.decide(fastrand::f64(), now) {
        AdmissionDecision::Admitted => return Ok(()),
        AdmissionDecision::WouldReject(numbers) => (numbers, true),
        AdmissionDecision::Rejected(numbers) => (numbers, false),
    };
    let evidence = format!(
        "{} of {} attempts succeeded, {:.0} % of the requests are rejected",
        numbers.counts.successes,
        numbers.counts.total,
        numbers.rejection_probability.percent()
    );
    let rejection = Rejection::new(Reason::AdmissionControl, admission_control.name().clone())
        .with_retry_after(DEFAULT_RETRY_AFTER)
        .with_evidence(evidence);
    if !is_shadow {
        return Err(rejection);
    }
    evidence::record_shadow_rejection(context, &rejection);
    Ok(())
}

/// Returns whether a copy of a request may be sent to a destination. A rejected copy is skipped.
pub(crate) fn admits_copy(destination: &DestinationState, now: Instant) -> bool {
    let admission_control = destination.policy_states.admission_control.as_ref();
    admission_control.is_none_or(|admission_control| {
        let decision = admission_control.decide(fastrand::f64(), now);
        !matches!(decision, AdmissionDecision::Rejected(_))
    })
}

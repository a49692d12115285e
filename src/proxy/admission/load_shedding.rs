//! Load shedding: while the instance is short of resources, it rejects the least important
//! requests first.
//!
//! The module decides the priority class of a request. It does not measure resources; the
//! protection state decides which classes are shed.

use crate::{
    policy::snapshot::ProtectionSpec,
    proxy::{
        admission::health_requests::is_health_check,
        request::{
            context::RequestContext,
            evidence,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
            view::RequestView,
        },
    },
    resilience::{Mode, shed::PriorityClass},
    telemetry::{label::Label, reason::Reason},
};

/// Rejects an inbound request whose priority class is shed now.
///
/// Health checks are always admitted. In shadow mode a rejection is recorded, and the request
/// is admitted.
pub(crate) fn check(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> Result<(), Rejection> {
    let Some(spec) = inbound_protection(context) else {
        return Ok(());
    };
    let protection = &context.worker.state.protection;
    let priority_class = priority_class(spec, request);
    if protection.should_shed(priority_class, fastrand::f64) && !is_health_check(context, request) {
        if spec.mode == Mode::Enforce {
            return Err(shed_rejection(
                protection.cause().map_or("", Label::label),
                spec,
                priority_class,
            ));
        }
        evidence::record_shadow_rejection(context, &Rejection::from_reason(Reason::Shed));
    }
    Ok(())
}

/// Returns the protection policy for an inbound request, or `None`.
///
/// Outbound requests are exempt, because they complete work that inbound requests started.
pub(crate) fn inbound_protection<'e>(context: &RequestContext<'e>) -> Option<&'e ProtectionSpec> {
    context
        .active_policy
        .snapshot
        .protection
        .as_ref()
        .filter(|_| context.is_inbound())
}

/// Returns the priority class that a request states in the priority header.
///
/// The class is `Normal` if the header is absent or names no configured class.
pub(crate) fn priority_class(spec: &ProtectionSpec, request: &RequestView<'_>) -> PriorityClass {
    let header_value = request
        .header_str(&spec.priority_header)
        .unwrap_or_default()
        .trim();
    PriorityClass::ALL
        .into_iter()
        .zip(&spec.priority_classes)
        .find(|(_, name)| name.eq_ignore_ascii_case(header_value))
        .map_or(PriorityClass::Normal, |(class, _)| class)
}

/// Returns the rejection of a request whose priority class is shed.
pub(crate) fn shed_rejection(
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

//! Warm-up of this instance: inbound requests beyond its share are rejected, so that clients
//! retry them at other replicas.
//!
//! The module does not know the warm-up curve. `InstanceAge` returns the share.

use std::time::Instant;

use crate::{
    proxy::{
        admission::health_requests::is_health_check,
        request::{
            context::RequestContext,
            evidence,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
            view::RequestView,
        },
        wire::header_names::WEIGHED,
    },
    resilience::Mode,
    telemetry::reason::Reason,
};

/// Rejects an inbound request that exceeds the share of a warming instance.
///
/// Some requests are always admitted:
///
/// - health checks,
/// - requests whose sender already follows the warm-up curve,
/// - all requests while no other replica is known to be warm.
///
/// In shadow mode a rejection is recorded, and the request is admitted.
pub(crate) fn check(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    now: Instant,
) -> Result<(), Rejection> {
    let warm_up = context
        .active_policy
        .snapshot
        .lifecycle
        .warm_up
        .as_ref()
        .filter(|_| context.is_inbound());
    let Some(warm_up) = warm_up else {
        return Ok(());
    };
    let state = &context.worker.state;
    let Some(warm_up_factor) = state
        .lifecycle
        .instance_age
        .warm_up_factor(&warm_up.config, now)
    else {
        return Ok(());
    };
    // Without a warm replica the client has no alternative. All instances may be new at the
    // same time.
    let has_warm_replica = || state.replicas.has_warm_replica(context.active_policy, now);
    if request.head.headers.contains_key(WEIGHED)
        || is_health_check(context, request)
        || !has_warm_replica()
        || state.lifecycle.instance_age.admits(warm_up_factor)
    {
        return Ok(());
    }
    if warm_up.mode == Mode::Enforce {
        return Err(Rejection::from_reason(Reason::WarmingUp).with_retry_after(DEFAULT_RETRY_AFTER));
    }
    evidence::record_shadow_rejection(context, &Rejection::from_reason(Reason::WarmingUp));
    Ok(())
}

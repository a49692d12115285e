//! Rejects requests while the memory budget is nearly used up, the least important first.
//!
//! The module does not release memory; `accept::memory_relief` does.

use crate::{
    proxy::{
        admission::{
            health_requests::is_health_check,
            load_shedding::{inbound_protection, priority_class},
        },
        request::{
            context::RequestContext,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
            view::RequestView,
        },
    },
    resilience::{
        memory_pressure::{MemoryLevel, rejects},
        shed::PriorityClass,
    },
    telemetry::reason::Reason,
};

/// Rejects a request if memory is short and its priority class is not important enough.
///
/// Health checks are always admitted. An outbound request has the class high, because it
/// completes work that an inbound request started.
pub(crate) fn check(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> Result<(), Rejection> {
    if context.worker.memory_level() < MemoryLevel::Critical {
        return Ok(());
    }
    let class = match inbound_protection(context) {
        Some(spec) => priority_class(spec, request),
        None if context.is_inbound() => PriorityClass::Normal,
        None => PriorityClass::High,
    };
    let memory = &context.worker.state.memory;
    if rejects(class, memory.used_bytes(), memory.budget_bytes())
        && !is_health_check(context, request)
    {
        return Err(Rejection::from_reason(Reason::Memory).with_retry_after(DEFAULT_RETRY_AFTER));
    }
    Ok(())
}

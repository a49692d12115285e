//! Decides which outcomes a fallback or a stale response may replace.
//!
//! The module does not know whether the policy configures a replacement or one is available.

use crate::{
    policy::{
        document::FallbackTrigger,
        sections::{PolicySpec, fault_injection::FaultAbortStatus},
        units::StatusSet,
    },
    proxy::{
        attempt::outcome::UpstreamResponse,
        request::{
            grpc,
            reason_table::properties,
            rejection::{Rejection, ResponseOverride},
        },
    },
    telemetry::reason::Reason,
};

/// A failure that another response may replace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DegradableFailure {
    /// Trigger of a fallback; `None` if the failure triggers none.
    pub(crate) trigger: Option<FallbackTrigger>,
    /// Whether a stale response may replace the failure.
    pub(crate) allows_stale: bool,
    /// Whether the backend may have processed the request.
    pub(crate) may_have_run: bool,
    /// HTTP status of the failed response, if there was one.
    pub(crate) status: Option<u16>,
}

/// Returns the failure that a response represents, or `None` if the response must not be
/// replaced.
pub(crate) fn failure_from_response(
    policy: &PolicySpec,
    response: &UpstreamResponse,
) -> Option<DegradableFailure> {
    let head = response.stream.head()?;
    let failure = match response
        .head
        .grpc_status
        .filter(|status| *status != 0 && head.status == 200)
    {
        _ if response.head.is_upgrade => None,
        Some(status) => {
            failure_from_grpc_status(policy, status, grpc::parse_status(&head.headers).is_none())
        }
        None => failure_from_status(policy, head.status.as_u16()),
    };
    failure.map(|failure| DegradableFailure {
        may_have_run: failure.may_have_run && !response.head.is_unprocessed,
        ..failure
    })
}

fn failure_from_status(policy: &PolicySpec, status: u16) -> Option<DegradableFailure> {
    let codes = &policy.retry.codes;
    let is_exhausted = if *codes == StatusSet::default() {
        (502..=504).contains(&status)
    } else {
        codes.contains(status)
    };
    // RFC 5861 section 4 defines these statuses as errors.
    let allows_stale = matches!(status, 500 | 502..=504);
    let trigger = is_exhausted.then_some(FallbackTrigger::RetriesExhausted);
    (is_exhausted || allows_stale).then_some(DegradableFailure {
        trigger,
        allows_stale,
        may_have_run: true,
        status: Some(status),
    })
}

/// Returns the failure that a gRPC status represents, or `None` if it is none.
///
/// Failures are the statuses that the retry policy names, or UNAVAILABLE if it names none. A
/// named status without a preceding response means that the call did not run.
fn failure_from_grpc_status(
    policy: &PolicySpec,
    status: u8,
    has_started: bool,
) -> Option<DegradableFailure> {
    let codes = policy.retry.grpc_codes;
    let is_named = codes & (1 << status) != 0;
    let is_exhausted = is_named || (codes == 0 && status == grpc::UNAVAILABLE);
    is_exhausted.then_some(DegradableFailure {
        trigger: Some(FallbackTrigger::RetriesExhausted),
        allows_stale: false,
        may_have_run: has_started || !is_named,
        status: None,
    })
}

/// Returns the failure that a rejection represents, or `None` if the rejection must stand.
pub(crate) fn failure_from_rejection(
    policy: &PolicySpec,
    rejection: &Rejection,
) -> Option<DegradableFailure> {
    if rejection.reason == Reason::FaultInjected {
        return failure_from_fault(policy, rejection);
    }
    let degradable = properties(rejection.reason).degradable?;
    Some(DegradableFailure {
        trigger: Some(degradable.trigger),
        allows_stale: true,
        may_have_run: degradable.may_have_run,
        status: None,
    })
}

/// Returns the failure that an injected fault represents. The fault is treated like the same
/// response of the backend.
fn failure_from_fault(policy: &PolicySpec, rejection: &Rejection) -> Option<DegradableFailure> {
    let failure = match rejection.response_override.as_deref() {
        Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
            failure_from_status(policy, *status)
        }
        Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => {
            failure_from_grpc_status(policy, *status, false)
        }
        _ => None,
    };
    failure.map(|failure| DegradableFailure {
        may_have_run: false,
        status: None,
        ..failure
    })
}

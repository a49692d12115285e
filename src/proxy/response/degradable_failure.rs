//! Which outcomes a fallback or a stale response may replace.

use crate::{
    policy::{
        document::FallbackTrigger,
        snapshot::{FaultAbortStatus, PolicySpec},
        units::StatusSet,
    },
    proxy::{
        attempt::outcome::UpstreamResponse,
        request::{
            grpc,
            rejection::{Rejection, ResponseOverride},
        },
    },
    telemetry::reason::Reason,
};

/// A failure that another response may replace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DegradableFailure {
    /// The trigger of a fallback, if the failure is one.
    pub(crate) trigger: Option<FallbackTrigger>,
    /// Whether a stale response may replace it.
    pub(crate) allows_stale: bool,
    /// Whether the request may have run.
    pub(crate) may_have_run: bool,
    /// The HTTP status of the failed response, if there was one.
    pub(crate) status: Option<u16>,
}

/// Classifies a response.
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
    // RFC 5861 section 4 names the errors.
    let allows_stale = matches!(status, 500 | 502..=504);
    let trigger = is_exhausted.then_some(FallbackTrigger::RetriesExhausted);
    (is_exhausted || allows_stale).then_some(DegradableFailure {
        trigger,
        allows_stale,
        may_have_run: true,
        status: Some(status),
    })
}

/// A status that the policy names, given instead of an answer, is one of before the call runs; without any, only "unavailable" is a failure.
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

/// Classifies a rejection.
pub(crate) fn failure_from_rejection(
    policy: &PolicySpec,
    rejection: &Rejection,
) -> Option<DegradableFailure> {
    let (trigger, may_have_run) = match rejection.reason {
        Reason::BreakerOpen => (FallbackTrigger::CircuitOpen, false),
        Reason::ConnectTimeout => (FallbackTrigger::Timeout, false),
        Reason::UpstreamTimeout | Reason::RequestTimeout => (FallbackTrigger::Timeout, true),
        Reason::ConnectFailed | Reason::TlsFailed => (FallbackTrigger::RetriesExhausted, false),
        Reason::UpstreamReset | Reason::UpstreamProtocolError => {
            (FallbackTrigger::RetriesExhausted, true)
        }
        Reason::NoHealthyEndpoint => (FallbackTrigger::NoHealthyEndpoint, false),
        Reason::AdmissionControl
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit
        | Reason::Shed => (FallbackTrigger::Overload, false),
        // As if the backend had said it.
        Reason::FaultInjected => {
            let failure = match rejection.response_override.as_deref() {
                Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
                    failure_from_status(policy, *status)
                }
                Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => {
                    failure_from_grpc_status(policy, *status, false)
                }
                _ => None,
            };
            return failure.map(|failure| DegradableFailure {
                may_have_run: false,
                status: None,
                ..failure
            });
        }
        _ => return None,
    };
    Some(DegradableFailure {
        trigger: Some(trigger),
        allows_stale: true,
        may_have_run,
        status: None,
    })
}

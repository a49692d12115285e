//! The status of a gRPC call: its fields, and its meaning for the policies.
//!
//! A call has the HTTP status 200. Its result is a gRPC status in the trailers, or in the head
//! of a response without a body. The module does not read messages.

use std::time::Duration;

use crate::{
    message::headers::{Headers, as_text},
    proxy::request::classify::AttemptVerdict,
    resilience::{breaker::CallOutcome, outlier::EndpointResult},
    telemetry::backend_metrics::AttemptOutcome,
};

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Status 1: the client cancelled the call.
pub(crate) const CANCELLED: u8 = 1;

/// Status 2: the error has no other status.
const UNKNOWN: u8 = 2;

/// Status 4: the deadline of the call expired.
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;

/// Status 7: the client may not make this call.
pub(crate) const PERMISSION_DENIED: u8 = 7;

/// Status 8: a limit rejects the call.
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;

/// Status 12: the service does not offer this method.
pub(crate) const UNIMPLEMENTED: u8 = 12;

/// Status 13: the server or the protocol is at fault.
pub(crate) const INTERNAL: u8 = 13;

/// Status 14: the service is temporarily unavailable, and a retry may succeed.
pub(crate) const UNAVAILABLE: u8 = 14;

/// Parses the status in a head or in trailers; `None` if the field is missing. A value that is
/// not in `0..=16` is read as 2, "unknown".
pub(crate) fn parse_status(fields: &Headers) -> Option<u8> {
    let text = as_text(fields.get(STATUS)?).unwrap_or_default().trim();
    Some(
        text.parse()
            .ok()
            .filter(|status| *status <= 16)
            .unwrap_or(UNKNOWN),
    )
}

/// Parses the pushback of a backend: the delay before a retry.
///
/// Returns `Some(None)` if the backend states no delay. Returns `None` if the value is negative
/// or invalid, which forbids a retry (gRPC A6, "Pushback").
#[expect(
    clippy::option_option,
    reason = "whether, and then when, are two questions"
)]
pub(crate) fn parse_retry_pushback(fields: &Headers) -> Option<Option<Duration>> {
    let Some(value) = fields.get(RETRY_PUSHBACK) else {
        return Some(None);
    };
    let millis: u32 = as_text(value)?.trim().parse().ok()?;
    Some(Some(Duration::from_millis(millis.into())))
}

/// Returns the status that stands for an HTTP status without a gRPC status (gRPC, "HTTP to gRPC
/// Status Code Mapping").
pub(crate) fn status_from_http(status: u16) -> u8 {
    match status {
        400 | 431 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Classifies a status for the breaker, outlier detection, the adaptive limit and the metrics.
pub(crate) fn verdict_from_status(status: u8) -> AttemptVerdict {
    let (breaker_outcome, outlier_outcome, attempt_outcome) = match status {
        RESOURCE_EXHAUSTED => (
            CallOutcome::Throttled,
            EndpointResult::Throttled,
            AttemptOutcome::Throttled,
        ),
        UNAVAILABLE => (
            CallOutcome::Failure,
            EndpointResult::GatewayError,
            AttemptOutcome::Failure,
        ),
        DEADLINE_EXCEEDED | 13 | 15 => (
            CallOutcome::Failure,
            EndpointResult::ServerError,
            AttemptOutcome::Failure,
        ),
        _ => (
            CallOutcome::Success,
            EndpointResult::Success,
            AttemptOutcome::Success,
        ),
    };
    AttemptVerdict {
        breaker_outcome,
        outlier_outcome,
        attempt_outcome,
        is_overload: matches!(status, RESOURCE_EXHAUSTED | UNAVAILABLE),
    }
}

/// Returns the fields that state the result of a call: the status, and a message for people.
pub(crate) fn status_trailers(status: u8, message: &str) -> Headers {
    let mut fields = Headers::default();
    fields.append_number(STATUS, status.into());
    fields.append(MESSAGE, percent_encode(message));
    fields
}

/// Percent-encodes `%` and every byte outside printable ASCII (gRPC over HTTP/2,
/// "Percent-Encoded").
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'%' => "%25".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests;

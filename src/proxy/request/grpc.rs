//! gRPC over HTTP/2: a status that comes at the end, or instead of an answer.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    proxy::request::classify::AttemptVerdict,
    resilience::{breaker::CallOutcome, outlier::EndpointResult},
    telemetry::metrics::AttemptOutcome,
};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The client cancelled the call.
pub(crate) const CANCELLED: u8 = 1;

/// The status for anything that gRPC does not know.
const UNKNOWN: u8 = 2;

/// The deadline of the call expired.
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;

/// The client may not make this call.
pub(crate) const PERMISSION_DENIED: u8 = 7;

/// A limit rejects the call.
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;

/// The service does not offer this method.
pub(crate) const UNIMPLEMENTED: u8 = 12;

/// Something that should hold does not.
pub(crate) const INTERNAL: u8 = 13;

/// The service is temporarily unavailable; a retry may succeed.
pub(crate) const UNAVAILABLE: u8 = 14;

/// The status in a head or in trailers; what is not a known number is 2, which is "unknown".
pub(crate) fn parse_status(fields: &HeaderMap) -> Option<u8> {
    let text = fields.get(STATUS)?.to_str().unwrap_or_default().trim();
    Some(
        text.parse()
            .ok()
            .filter(|status| *status <= 16)
            .unwrap_or(UNKNOWN),
    )
}

/// When a call may be tried again, if the backend says so: `None` if it says that it must not be.
#[expect(
    clippy::option_option,
    reason = "whether, and then when, are two questions"
)]
pub(crate) fn parse_retry_pushback(fields: &HeaderMap) -> Option<Option<Duration>> {
    let Some(value) = fields.get(RETRY_PUSHBACK) else {
        return Some(None);
    };
    let millis: u32 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Some(Duration::from_millis(millis.into())))
}

/// What a status of HTTP means where gRPC gave none (gRPC, "HTTP to gRPC Status Code Mapping").
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

/// What a status means for the breaker, the endpoint and the metrics.
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

/// The fields that say how a call ended.
pub(crate) fn status_trailers(status: u8, message: &str) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(2);
    fields.insert(STATUS, u16::from(status).into());
    if let Ok(message) = HeaderValue::from_str(&percent_encode(message)) {
        fields.insert(MESSAGE, message);
    }
    fields
}

/// Encodes what is not printable ASCII, and `%` (gRPC over HTTP/2, "Percent-Encoded").
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

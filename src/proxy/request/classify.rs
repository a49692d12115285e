//! Classifies the outcome of an attempt for each policy that observes it.
//!
//! The same outcome has several meanings: a failure or success for the breaker, a result for
//! outlier detection, a kind of failure for a retry, and a label for the metrics. This module
//! defines these meanings for HTTP; `grpc` does so for gRPC. It does not report the outcome,
//! and does not decide whether a retry follows.

use std::time::{Duration, SystemTime};

use http::header;

use crate::{
    message::ResponseHead,
    policy::sections::PolicySpec,
    resilience::{breaker::CallOutcome, outlier::EndpointResult, retry::FailureKind},
    telemetry::{backend_metrics::AttemptOutcome, reason::Reason},
};

/// Failure of an attempt without a usable response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportError {
    /// The connection could not be established.
    ConnectFailed,
    /// The connection was not established within its timeout.
    ConnectTimeout,
    /// The TLS handshake on the connection failed.
    TlsFailed,
    /// The backend states that it did not process the request, as with `REFUSED_STREAM`.
    Refused,
    /// The connection or the stream was reset or closed.
    Reset {
        /// Whether the backend may have received a part of the request.
        has_sent_request: bool,
    },
    /// The response head did not arrive in time.
    TimedOut {
        /// Whether the deadline of the whole request expired, and not only the attempt's
        /// timeout.
        is_request_timeout: bool,
    },
    /// The response violates the protocol.
    Protocol,
}

impl TransportError {
    /// Returns the kind of failure by which the retry policy decides.
    pub(crate) fn retry_failure(self) -> FailureKind {
        match self {
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed => {
                FailureKind::ConnectFailure
            }
            Self::Refused => FailureKind::RefusedStream,
            Self::Reset {
                has_sent_request: false,
            } => FailureKind::ResetBeforeRequest,
            Self::Reset {
                has_sent_request: true,
            } => FailureKind::Reset,
            Self::TimedOut {
                is_request_timeout: false,
            } => FailureKind::PerTryTimeout,
            Self::TimedOut {
                is_request_timeout: true,
            }
            | Self::Protocol => FailureKind::NotRetryable,
        }
    }

    /// Returns whether the backend provably did not process the request.
    pub(crate) fn is_unprocessed(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::TlsFailed
                | Self::Refused
                | Self::Reset {
                    has_sent_request: false
                }
        )
    }

    /// Returns the reason that the client receives if no retry follows.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::ConnectFailed => Reason::ConnectFailed,
            Self::ConnectTimeout => Reason::ConnectTimeout,
            Self::TlsFailed => Reason::TlsFailed,
            Self::Reset { .. } | Self::Refused => Reason::UpstreamReset,
            Self::TimedOut {
                is_request_timeout: false,
            } => Reason::UpstreamTimeout,
            Self::TimedOut {
                is_request_timeout: true,
            } => Reason::RequestTimeout,
            Self::Protocol => Reason::UpstreamProtocolError,
        }
    }

    /// Returns the outcome that the metrics of the backend count.
    pub(crate) fn attempt_outcome(self) -> AttemptOutcome {
        match self {
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed => {
                AttemptOutcome::ConnectFailure
            }
            Self::Reset { .. } | Self::Refused | Self::Protocol => AttemptOutcome::Reset,
            Self::TimedOut { .. } => AttemptOutcome::Timeout,
        }
    }
}

/// Meanings of one outcome of an attempt, one for each observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptVerdict {
    /// Result that the breaker counts.
    pub(crate) breaker_outcome: CallOutcome,
    /// Result that outlier detection counts for the endpoint.
    pub(crate) outlier_outcome: EndpointResult,
    /// Outcome that the metrics of the backend count.
    pub(crate) attempt_outcome: AttemptOutcome,
    /// Whether the backend reports overload, which lowers an adaptive concurrency limit.
    pub(crate) is_overload: bool,
}

/// Classifies a response status. The breaker policy defines failures; by default they are 500
/// and above. A status of 429 is throttling.
pub(crate) fn verdict_from_status(policy: &PolicySpec, status: u16) -> AttemptVerdict {
    let is_failure = policy
        .circuit_breaker
        .as_ref()
        .map_or(status >= 500, |breaker| {
            breaker.failure_codes.contains(status)
        });
    let (breaker_outcome, attempt_outcome) = match status {
        429 => (CallOutcome::Throttled, AttemptOutcome::Throttled),
        _ if is_failure => (CallOutcome::Failure, AttemptOutcome::Failure),
        _ => (CallOutcome::Success, AttemptOutcome::Success),
    };
    let outlier_outcome = match status {
        429 => EndpointResult::Throttled,
        502..=504 => EndpointResult::GatewayError,
        500.. => EndpointResult::ServerError,
        _ => EndpointResult::Success,
    };
    AttemptVerdict {
        breaker_outcome,
        outlier_outcome,
        attempt_outcome,
        is_overload: matches!(status, 429 | 503),
    }
}

/// Returns the wait that a response requests: seconds or a date (RFC 9110 section 10.2.3).
///
/// Returns `None` for a status other than 429 and 503, and for an invalid value. A date in the
/// past is a wait of zero.
pub(crate) fn parse_retry_after(
    response: &ResponseHead,
    wall_clock: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    if response.status != 429 && response.status != 503 {
        return None;
    }
    let value = response.headers.get_str(header::RETRY_AFTER)?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(wall_clock()).unwrap_or_default())
}

#[cfg(test)]
mod tests;

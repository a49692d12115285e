//! What an attempt's end means: for the breaker, for the retry, for the metrics.

use std::time::{Duration, Instant, SystemTime};

use http::header;
use pingora::http::ResponseHeader;

use crate::{
    policy::snapshot::PolicySpec,
    resilience::{breaker::CallOutcome, outlier::EndpointResult, retry::FailureKind},
    state::policies::concurrency_limit::LimitSampler,
    telemetry::{metrics::AttemptOutcome, reason::Reason},
};

/// How an attempt ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportError {
    /// No connection.
    ConnectFailed,
    /// No connection in time.
    ConnectTimeout,
    /// A connection, and no agreement on TLS.
    TlsFailed,
    /// The backend says that it did not look at the request.
    Refused,
    /// Cut off, before or after a byte of the request had left.
    Reset {
        /// Whether a byte had left.
        has_sent_request: bool,
    },
    /// No answer in time.
    TimedOut {
        /// Whether the whole request's time is over, and not only the attempt's.
        is_request_timeout: bool,
    },
    /// An answer that is not HTTP.
    Protocol,
}

impl TransportError {
    /// For the retry.
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

    /// Whether the backend cannot have looked at the request.
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

    /// For the client, if it is not tried again.
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

    /// For the metrics.
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

/// What an attempt's end means for each who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptVerdict {
    /// For the breaker.
    pub(crate) breaker_outcome: CallOutcome,
    /// For the endpoint.
    pub(crate) outlier_outcome: EndpointResult,
    /// For the metrics.
    pub(crate) attempt_outcome: AttemptOutcome,
    /// For an adaptive limit: whether it is asked too much.
    pub(crate) is_overload: bool,
}

impl AttemptVerdict {
    /// Tells an adaptive limit what an attempt says. How soon a backend fails says nothing about how long it takes to work.
    pub(crate) fn record_sample(
        &self,
        limit_sampler: &LimitSampler,
        duration: Duration,
        now: Instant,
    ) {
        if self.is_overload || self.breaker_outcome == CallOutcome::Success {
            limit_sampler.record_sample(duration, self.is_overload, now);
        }
    }
}

/// What a status means.
pub(crate) fn verdict_from_status(policy: &PolicySpec, status: u16) -> AttemptVerdict {
    let is_failure = policy.breaker.as_ref().map_or(status >= 500, |breaker| {
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

/// The wait that an answer asks for: seconds or a date (RFC 9110 section 10.2.3), believed on 429 and 503 only.
pub(crate) fn parse_retry_after(
    response: &ResponseHeader,
    wall_clock: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    if response.status != 429 && response.status != 503 {
        return None;
    }
    let value = response
        .headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(wall_clock()).unwrap_or_default())
}

#[cfg(test)]
mod tests;

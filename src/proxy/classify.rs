//! What an attempt's end means: for the breaker, for the retry, for the metrics.

use std::time::{Duration, Instant, SystemTime};

use http::header;
use pingora::http::ResponseHeader;

use crate::{
    policy::snapshot::PolicySpec,
    resilience::{breaker::Outcome, outlier::Attempted, retry::Failure},
    state::limit::Learner,
    telemetry::{metrics::AttemptOutcome, reason::Reason},
};

/// How an attempt ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
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
        has_sent: bool,
    },
    /// No answer in time.
    TimedOut {
        /// Whether the whole request's time is over, and not only the attempt's.
        is_request: bool,
    },
    /// An answer that is not HTTP.
    Protocol,
}

impl Broken {
    /// For the retry.
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed => Failure::ConnectFailure,
            Self::Refused => Failure::Refused,
            Self::Reset { has_sent: false } => Failure::ResetBeforeRequest,
            Self::Reset { has_sent: true } => Failure::Reset,
            Self::TimedOut { is_request: false } => Failure::PerTryTimeout,
            Self::TimedOut { is_request: true } | Self::Protocol => Failure::Final,
        }
    }

    /// Whether the backend cannot have looked at the request.
    pub(super) fn is_unprocessed(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::TlsFailed
                | Self::Refused
                | Self::Reset { has_sent: false }
        )
    }

    /// For the client, if it is not tried again.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::ConnectFailed => Reason::ConnectFailed,
            Self::ConnectTimeout => Reason::ConnectTimeout,
            Self::TlsFailed => Reason::TlsFailed,
            Self::Reset { .. } | Self::Refused => Reason::UpstreamReset,
            Self::TimedOut { is_request: false } => Reason::UpstreamTimeout,
            Self::TimedOut { is_request: true } => Reason::RequestTimeout,
            Self::Protocol => Reason::UpstreamProtocolError,
        }
    }

    /// For the metrics.
    pub(super) fn outcome(self) -> AttemptOutcome {
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
pub(super) struct Judgement {
    /// For the breaker.
    pub(super) outcome: Outcome,
    /// For the endpoint.
    pub(super) attempted: Attempted,
    /// For the metrics.
    pub(super) counted: AttemptOutcome,
    /// For an adaptive limit: whether it is asked too much.
    pub(super) is_overload: bool,
}

impl Judgement {
    /// Tells an adaptive limit what an attempt says. How soon a backend fails says nothing about how long it takes to work.
    pub(super) fn teach(&self, learner: &Learner, took: Duration, now: Instant) {
        if self.is_overload || self.outcome == Outcome::Success {
            learner.note(took, self.is_overload, now);
        }
    }
}

/// What a status means.
pub(super) fn status(policy: &PolicySpec, status: u16) -> Judgement {
    let is_failure = policy.breaker.as_ref().map_or(status >= 500, |breaker| {
        breaker.failure_codes.contains(status)
    });
    let (outcome, counted) = match status {
        429 => (Outcome::Throttled, AttemptOutcome::Throttled),
        _ if is_failure => (Outcome::Failure, AttemptOutcome::Failure),
        _ => (Outcome::Success, AttemptOutcome::Success),
    };
    let attempted = match status {
        429 => Attempted::Throttled,
        502..=504 => Attempted::GatewayError,
        500.. => Attempted::ServerError,
        _ => Attempted::Success,
    };
    Judgement {
        outcome,
        attempted,
        counted,
        is_overload: matches!(status, 429 | 503),
    }
}

/// The wait that an answer asks for: seconds or a date (RFC 9110 section 10.2.3), believed on 429 and 503 only.
pub(super) fn retry_after(
    answer: &ResponseHeader,
    wall: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    if answer.status != 429 && answer.status != 503 {
        return None;
    }
    let value = answer
        .headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(wall()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let table = [
            (503, "3", Some(3)),
            (429, " 120 ", Some(120)),
            (503, "99999999999999999999999", Some(u64::MAX)),
            (503, "Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            (503, "Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            (503, "-1", None),
            (503, "soon", None),
            (503, "", None),
            (502, "3", None),
        ];
        for (status, value, expected) in table {
            let mut answer = ResponseHeader::build(status, None).expect("a status");
            answer.insert_header("retry-after", value).expect("a value");
            assert_eq!(
                retry_after(&answer, || wall).map(|wait| wait.as_secs()),
                expected,
                "{status} {value}"
            );
        }
    }
}

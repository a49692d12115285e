//! The causes of an ejection, with their measured values and limits.

use std::time::Duration;

/// Cause of an ejection, with the values that led to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EjectionCause {
    /// This many consecutive failures of any kind.
    Consecutive5xx(u32),
    /// This many consecutive responses with the status 502, 503 or 504.
    ConsecutiveGatewayErrors(u32),
    /// This many consecutive attempts without a response.
    ConsecutiveLocalOriginFailures(u32),
    /// The success rate is far below that of the peers.
    SuccessRate {
        /// Success rate of the endpoint, in percent.
        rate: f64,
        /// Lowest success rate that is accepted, in percent.
        limit: f64,
    },
    /// The share of failures is too high.
    FailurePercentage {
        /// Share of failures of the endpoint, in percent.
        rate: f64,
        /// Share of failures from which an endpoint is ejected, in percent.
        limit: f64,
    },
    /// The latency is far above that of the peers.
    HighLatency {
        /// 90th percentile of the latency of the endpoint, or the median if it has few
        /// latencies.
        p90: Duration,
        /// Median of the same value over the peers.
        peer_median: Duration,
        /// Highest latency that is accepted.
        limit: Duration,
    },
    /// The probe failed, so the ejection is repeated.
    FailedProbe,
    /// The endpoint was ejected for its latency, and its probe was too slow as well.
    SlowProbe {
        /// Latency of the probe.
        took: Duration,
        /// Highest latency that is accepted from a probe.
        limit: Duration,
    },
}

impl std::fmt::Display for EjectionCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Consecutive5xx(run) => write!(f, "{run} failures in a row"),
            Self::ConsecutiveGatewayErrors(run) => write!(f, "{run} gateway errors in a row"),
            Self::ConsecutiveLocalOriginFailures(run) => {
                write!(f, "{run} attempts in a row without a response")
            }
            Self::SuccessRate { rate, limit } => write!(
                f,
                "its success rate of {rate:.1} % is below {limit:.1} %, the mean of its peers less \
                 the deviation"
            ),
            Self::FailurePercentage { rate, limit } => write!(
                f,
                "{rate:.1} % of its responses are failures, {limit:.1} % is the limit"
            ),
            Self::HighLatency {
                p90,
                peer_median: peers,
                ..
            } => write!(
                f,
                "its p90 of {p90:.1?} is far above {peers:.1?}, the median of its peers"
            ),
            Self::FailedProbe => f.write_str("it failed its probe"),
            Self::SlowProbe { took, limit } => {
                write!(f, "its probe took {took:.1?}, {limit:.1?} is the limit")
            }
        }
    }
}

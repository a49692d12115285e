//! Why an endpoint is ejected.

use std::time::Duration;

/// Why an endpoint is ejected, with the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EjectionCause {
    /// So many failures in a row, whatever they were.
    Consecutive5xx(u32),
    /// So many 502, 503 and 504 in a row.
    ConsecutiveGatewayErrors(u32),
    /// So many attempts without an answer in a row.
    ConsecutiveLocalOriginFailures(u32),
    /// Its success rate is far below that of its peers; both in percent.
    SuccessRate {
        /// Its own.
        rate: f64,
        /// The lowest that would pass.
        limit: f64,
    },
    /// Its share of failures is too high; both in percent.
    FailurePercentage {
        /// Its own.
        rate: f64,
        /// The highest that would pass.
        limit: f64,
    },
    /// It is far slower than its peers.
    HighLatency {
        /// Its own 90th percentile.
        p90: Duration,
        /// The median of those of its peers.
        peer_median: Duration,
        /// The most that would pass.
        limit: Duration,
    },
    /// It failed its probe.
    FailedProbe,
    /// It was ejected for being slow, and its probe was still slow.
    SlowProbe {
        /// What the probe took.
        took: Duration,
        /// The most that would pass.
        limit: Duration,
    },
}

impl std::fmt::Display for EjectionCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Consecutive5xx(run) => write!(f, "{run} failures in a row"),
            Self::ConsecutiveGatewayErrors(run) => write!(f, "{run} gateway errors in a row"),
            Self::ConsecutiveLocalOriginFailures(run) => {
                write!(f, "{run} attempts in a row without an answer")
            }
            Self::SuccessRate { rate, limit } => write!(
                f,
                "its success rate of {rate:.1} % is below {limit:.1} %, the mean of its peers less the deviation"
            ),
            Self::FailurePercentage { rate, limit } => write!(
                f,
                "{rate:.1} % of its answers are failures, {limit:.1} % is the limit"
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

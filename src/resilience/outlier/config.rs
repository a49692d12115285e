//! The numbers of outlier detection.

use std::time::Duration;

use crate::resilience::ratio::Ratio;

/// Runs of failures that eject; 0 switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsecutiveThresholds {
    /// Failures of any kind.
    pub failures: u32,
    /// 502, 503 and 504.
    pub gateway_errors: u32,
    /// Attempts without an answer.
    pub local_origin_failures: u32,
}

impl Default for ConsecutiveThresholds {
    /// 5 failures of any kind, or 5 attempts without an answer; gateway errors by themselves are off, as with Envoy.
    fn default() -> Self {
        Self {
            failures: 5,
            gateway_errors: 0,
            local_origin_failures: 5,
        }
    }
}

/// Comparing an endpoint's success rate with its peers': out is who is below `mean - deviations * standard deviation`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRateRule {
    /// Standard deviations. Envoy's default is 1.9.
    pub stdev_factor: f64,
    /// Endpoints with enough requests that are needed to compare. Envoy's default is 5.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough. Envoy's default is 100.
    pub request_volume: u32,
}

/// Out is whose share of failures is too high.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailurePercentageRule {
    /// The share that is too high.
    pub threshold: Ratio,
    /// Endpoints with enough requests that are needed to compare. Envoy's default is 5.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough. Envoy's default is 50.
    pub request_volume: u32,
}

/// A configuration that makes sense.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierConfig {
    pub(super) consecutive_thresholds: ConsecutiveThresholds,
    pub(super) success_rate: Option<SuccessRateRule>,
    pub(super) failure_percentage: Option<FailurePercentageRule>,
    pub(super) slow_factor: Option<f64>,
    interval: Duration,
    base_ejection_time: Duration,
    max_ejection_time: Duration,
    pub(super) max_ejected_ratio: Ratio,
}

/// Why a configuration makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidOutlier {
    /// The interval or the ejection is zero.
    ZeroDuration,
    /// The longest ejection is shorter than the first.
    MaxBelowBase,
    /// The factor of slowness is not above 1.
    LatencyFactorTooLow,
}

impl std::fmt::Display for InvalidOutlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroDuration => "the interval and the ejection take time",
            Self::MaxBelowBase => "the longest ejection is at least as long as the first",
            Self::LatencyFactorTooLow => {
                "an endpoint is slow when it takes more than 1 time what its peers take"
            }
        })
    }
}

impl std::error::Error for InvalidOutlier {}

impl OutlierConfig {
    /// Makes a configuration with the runs of its default and nothing compared.
    ///
    /// # Errors
    /// If a time is zero, or the longest ejection is shorter than the first.
    pub fn try_new(
        interval: Duration,
        base_ejection: Duration,
        max_ejection: Duration,
        max_ejected: Ratio,
    ) -> Result<Self, InvalidOutlier> {
        if interval.is_zero() || base_ejection.is_zero() {
            return Err(InvalidOutlier::ZeroDuration);
        }
        if max_ejection < base_ejection {
            return Err(InvalidOutlier::MaxBelowBase);
        }
        Ok(Self {
            consecutive_thresholds: ConsecutiveThresholds::default(),
            success_rate: None,
            failure_percentage: None,
            slow_factor: None,
            interval,
            base_ejection_time: base_ejection,
            max_ejection_time: max_ejection,
            max_ejected_ratio: max_ejected,
        })
    }

    /// With other runs.
    #[must_use]
    pub fn with_consecutive_thresholds(self, runs: ConsecutiveThresholds) -> Self {
        Self {
            consecutive_thresholds: runs,
            ..self
        }
    }

    /// With rates compared.
    #[must_use]
    pub fn with_rate_rules(
        self,
        success_rate: Option<SuccessRateRule>,
        failure_percentage: Option<FailurePercentageRule>,
    ) -> Self {
        Self {
            success_rate,
            failure_percentage,
            ..self
        }
    }

    /// With latencies compared: out is whose 90th percentile is above `factor` times the median of its peers'.
    ///
    /// # Errors
    /// If the factor is not above 1.
    pub fn with_slow_factor(self, factor: f64) -> Result<Self, InvalidOutlier> {
        if factor.is_finite() && factor > 1.0 {
            Ok(Self {
                slow_factor: Some(factor),
                ..self
            })
        } else {
            Err(InvalidOutlier::LatencyFactorTooLow)
        }
    }

    /// The runs that eject.
    #[must_use]
    pub fn consecutive_thresholds(&self) -> ConsecutiveThresholds {
        self.consecutive_thresholds
    }

    /// The time between two sweeps.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How long the `times`-th ejection in a row lasts.
    #[must_use]
    pub fn ejection_time(&self, times: u32) -> Duration {
        self.base_ejection_time
            .saturating_mul(times)
            .min(self.max_ejection_time)
    }
}

//! The configuration of outlier detection, in a form that cannot be invalid.

use std::time::Duration;

use crate::resilience::ratio::Ratio;

/// Numbers of consecutive failures that eject an endpoint; 0 disables a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsecutiveThresholds {
    /// Consecutive failures of any kind.
    pub failures: u32,
    /// Consecutive responses with the status 502, 503 or 504.
    pub gateway_errors: u32,
    /// Consecutive attempts without a response.
    pub local_origin_failures: u32,
}

impl Default for ConsecutiveThresholds {
    /// Returns 5 failures of any kind or 5 attempts without a response; gateway errors are off,
    /// as in Envoy.
    fn default() -> Self {
        Self {
            failures: 5,
            gateway_errors: 0,
            local_origin_failures: 5,
        }
    }
}

/// Compares the success rate of an endpoint with that of its peers.
///
/// An endpoint is ejected if its rate is below `mean - stdev_factor * standard deviation`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRateRule {
    /// Number of standard deviations below the mean, above 0. Envoy's default is 1.9.
    pub stdev_factor: f64,
    /// Minimum number of endpoints with enough requests. Envoy's default is 5.
    pub minimum_hosts: u32,
    /// Minimum number of requests of an endpoint in an interval. Envoy's default is 100.
    pub request_volume: u32,
}

/// Ejects an endpoint whose share of failures reaches a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailurePercentageRule {
    /// Share of failures from which an endpoint is ejected.
    pub threshold: Ratio,
    /// Minimum number of endpoints with enough requests. Envoy's default is 5.
    pub minimum_hosts: u32,
    /// Minimum number of requests of an endpoint in an interval. Envoy's default is 50.
    pub request_volume: u32,
}

/// Configuration of outlier detection: thresholds, rules, times and the maximum ejected share.
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

/// Reason why a configuration is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidOutlier {
    /// The interval or the base ejection time is zero.
    ZeroDuration,
    /// The maximum ejection time is below the base ejection time.
    MaxBelowBase,
    /// The latency factor is not a finite number above 1.
    LatencyFactorTooLow,
}

impl std::fmt::Display for InvalidOutlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroDuration => "`interval` and `baseEjectionTime` must be longer than 0s",
            Self::MaxBelowBase => "`maxEjectionTime` must be at least `baseEjectionTime`",
            Self::LatencyFactorTooLow => "`slowFactor` must be above 1",
        })
    }
}

impl std::error::Error for InvalidOutlier {}

impl OutlierConfig {
    /// Creates a configuration with the default thresholds and without any comparison.
    ///
    /// # Errors
    /// Returns [`InvalidOutlier`] if a time is zero, or if the maximum ejection time is below
    /// the base.
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

    /// Replaces the thresholds for consecutive failures.
    #[must_use]
    pub fn with_consecutive_thresholds(self, runs: ConsecutiveThresholds) -> Self {
        Self {
            consecutive_thresholds: runs,
            ..self
        }
    }

    /// Replaces the rules that compare rates; `None` disables a rule.
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

    /// Enables the comparison of latencies.
    ///
    /// An endpoint is ejected if its latency exceeds `factor` times the median of its peers.
    ///
    /// # Errors
    /// Returns [`InvalidOutlier`] if the factor is not a finite number above 1.
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

    /// Returns the thresholds for consecutive failures.
    #[must_use]
    pub fn consecutive_thresholds(&self) -> ConsecutiveThresholds {
        self.consecutive_thresholds
    }

    /// Returns the time between two comparisons of rates.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the time of the ejection number `times`, which counts from 1.
    ///
    /// The time is a multiple of the base ejection time, up to the maximum.
    #[must_use]
    pub fn ejection_time(&self, times: u32) -> Duration {
        self.base_ejection_time
            .saturating_mul(times)
            .min(self.max_ejection_time)
    }
}

//! The comparison of endpoints with their peers.
//!
//! The functions decide which endpoints of a backend stand out, and whether the backend can
//! spare one. They keep no state. The caller collects the results and applies the ejections.

use std::time::Duration;

use crate::resilience::{
    latency_histogram::LatencyHistogram,
    outlier::{
        cause::EjectionCause, config::OutlierConfig, endpoint_result::EndpointResult,
        latency::MIN_LATENCY_DIFFERENCE,
    },
    ratio::Ratio,
};

/// Number of successes and failures of an endpoint in one interval.
#[derive(Debug, Clone, Default)]
pub struct IntervalResults {
    successes: u32,
    failures: u32,
}

impl IntervalResults {
    /// Counts a result. A throttled result is a success, and a cancelled one does not count.
    pub fn record(&mut self, result: EndpointResult) {
        match result {
            EndpointResult::Success | EndpointResult::Throttled => {
                self.successes = self.successes.saturating_add(1)
            }
            EndpointResult::GatewayError
            | EndpointResult::ServerError
            | EndpointResult::LocalOriginFailure => self.failures = self.failures.saturating_add(1),
            EndpointResult::Cancelled => {}
        }
    }

    /// Returns the number of successes, including throttled results.
    #[must_use]
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Returns the number of failures, of any kind.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn total(&self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    fn success_percent(&self) -> f64 {
        Ratio::from_fraction(self.successes, self.total()).percent()
    }
}

/// Returns the endpoints whose results stand out, as positions in `results`.
///
/// `results` holds the endpoints that are not ejected. Low success rates come first, then high
/// failure percentages, each with the worst endpoint first.
#[must_use]
pub fn find_outliers_by_results(
    config: &OutlierConfig,
    results: &[IntervalResults],
) -> Vec<(usize, EjectionCause)> {
    let mut outliers = find_low_success_rates(config, results);
    for (index, cause) in find_high_failure_percentages(config, results) {
        if !outliers.iter().any(|(known, _)| *known == index) {
            outliers.push((index, cause));
        }
    }
    outliers
}

/// Returns the endpoints whose latencies stand out, as positions in `latencies`.
///
/// Each histogram comes with its tier. Endpoints of another zone or priority are further away,
/// so the comparison stays within a tier. Tiers come in ascending order, each with the slowest
/// endpoint first.
#[must_use]
pub fn find_outliers_by_latency(
    config: &OutlierConfig,
    latencies: &[(usize, LatencyHistogram)],
) -> Vec<(usize, EjectionCause)> {
    let mut tiers: Vec<usize> = latencies.iter().map(|(tier, _)| *tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    tiers
        .into_iter()
        .flat_map(|tier| find_slow_in_tier(config, latencies, tier))
        .collect()
}

/// Returns whether one more endpoint of a backend may be ejected.
///
/// `total` is the number of endpoints, `ejected` the number of ejected ones, and `available`
/// the number of those that can still be selected.
#[must_use]
pub fn may_eject(config: &OutlierConfig, total: usize, ejected: usize, available: usize) -> bool {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small number"
    )]
    let allowed = (total as f64 * config.max_ejected_ratio.value()).floor() as usize;
    let allowed = if config.max_ejected_ratio == Ratio::ZERO {
        0
    } else {
        allowed.max(1)
    };
    ejected < allowed && available > 1
}

fn find_low_success_rates(
    config: &OutlierConfig,
    results: &[IntervalResults],
) -> Vec<(usize, EjectionCause)> {
    let Some(rule) = config.success_rate else {
        return Vec::new();
    };
    let rates = success_percents_with_volume(results, rule.request_volume, rule.minimum_hosts);
    let count = f64::from(u32::try_from(rates.len()).unwrap_or(u32::MAX));
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>()
        / count;
    let limit = mean - rule.stdev_factor * variance.sqrt();
    sort_worst_first(
        rates
            .into_iter()
            .filter(|(_, rate)| *rate < limit)
            .collect(),
    )
    .into_iter()
    .map(|(index, rate)| (index, EjectionCause::SuccessRate { rate, limit }))
    .collect()
}

fn find_high_failure_percentages(
    config: &OutlierConfig,
    results: &[IntervalResults],
) -> Vec<(usize, EjectionCause)> {
    let Some(rule) = config.failure_percentage else {
        return Vec::new();
    };
    let limit = rule.threshold.percent();
    let rates = success_percents_with_volume(results, rule.request_volume, rule.minimum_hosts);
    let bad = rates
        .into_iter()
        .filter(|(_, rate)| 100.0 - rate >= limit)
        .collect();
    sort_worst_first(bad)
        .into_iter()
        .map(|(index, rate)| {
            (
                index,
                EjectionCause::FailurePercentage {
                    rate: 100.0 - rate,
                    limit,
                },
            )
        })
        .collect()
}

/// Returns the success rates in percent of endpoints with at least `volume` requests.
///
/// The result is empty if fewer than `minimum_hosts` endpoints qualify.
fn success_percents_with_volume(
    results: &[IntervalResults],
    volume: u32,
    minimum_hosts: u32,
) -> Vec<(usize, f64)> {
    let enough = results
        .iter()
        .enumerate()
        .filter(|(_, record)| record.total() >= volume.max(1));
    let rates: Vec<_> = enough
        .map(|(index, record)| (index, record.success_percent()))
        .collect();
    if rates.len() >= minimum_hosts.max(1) as usize {
        rates
    } else {
        Vec::new()
    }
}

fn sort_worst_first(mut rates: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    rates
}

/// Returns the slow endpoints of a tier. Each is compared with the median of the others, so
/// that of two endpoints the slower one can be detected.
fn find_slow_in_tier(
    config: &OutlierConfig,
    latencies: &[(usize, LatencyHistogram)],
    tier: usize,
) -> Vec<(usize, EjectionCause)> {
    let Some(factor) = config.slow_factor else {
        return Vec::new();
    };
    let members = latencies
        .iter()
        .enumerate()
        .filter(|(_, (member_tier, _))| *member_tier == tier);
    let mut latencies_of_tier: Vec<(usize, Duration)> = members
        .filter_map(|(index, (_, latencies))| Some((index, latencies.comparison_latency()?)))
        .collect();
    latencies_of_tier.sort_by_key(|(_, latency)| *latency);
    let slow = (0..latencies_of_tier.len()).rev().map_while(|position| {
        let (index, p90) = latencies_of_tier[position];
        let peers = median_without(&latencies_of_tier, position)?;
        let limit = peers.mul_f64(factor).max(peers + MIN_LATENCY_DIFFERENCE);
        (p90 > limit).then_some((
            index,
            EjectionCause::HighLatency {
                p90,
                peer_median: peers,
                limit,
            },
        ))
    });
    slow.collect()
}

/// Returns the lower median of a sorted list without the element at `position`.
fn median_without(sorted: &[(usize, Duration)], position: usize) -> Option<Duration> {
    let middle = sorted.len().checked_sub(2)? / 2;
    sorted
        .get(if middle >= position {
            middle + 1
        } else {
            middle
        })
        .map(|(_, p90)| *p90)
}

#[cfg(test)]
mod tests;

//! Comparing endpoints with their peers, once an interval.

use std::time::Duration;

use super::{EjectionCause, EndpointResult, OutlierConfig, latency::MIN_LATENCY_DIFFERENCE};
use crate::resilience::{latencies::LatencyHistogram, ratio::Ratio};

/// What was seen of an endpoint in an interval.
#[derive(Debug, Clone, Default)]
pub struct IntervalResults {
    successes: u32,
    failures: u32,
}

impl IntervalResults {
    /// Adds a result.
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

    /// Results that were no failures.
    #[must_use]
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Results that were failures.
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

/// Whose results stand out, the worst first. `records` are those of the endpoints that are in.
#[must_use]
pub fn find_outliers_by_results(
    config: &OutlierConfig,
    results: &[IntervalResults],
) -> Vec<(usize, EjectionCause)> {
    let mut outliers = find_low_success_rates(config, results);
    for (index, cause) in find_high_failure_percentages(config, results) {
        if !outliers
            .iter()
            .any(|(latencies_of_tier, _)| *latencies_of_tier == index)
        {
            outliers.push((index, cause));
        }
    }
    outliers
}

/// Whose latencies stand out, the worst first. Each comes with its tier: those of another zone or priority are further away, so that
/// they are compared within one.
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

/// Whether one more of `total` endpoints may be ejected, of which so many are already and so many could still be picked.
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

/// Success rates in percent of those with enough requests, if they are enough.
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

/// An endpoint is compared with the median of the others, so that of two the slower one can be told.
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

/// The lower median of a sorted list without one of its places.
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
mod tests {
    use super::*;
    use crate::resilience::outlier::{FailurePercentageRule, SuccessRateRule};

    fn config() -> OutlierConfig {
        let seconds = Duration::from_secs;
        OutlierConfig::try_new(
            seconds(10),
            seconds(30),
            seconds(300),
            Ratio::from_percent(50.0).expect("50 %"),
        )
        .expect("fine")
    }

    fn interval_results(successes: u32, failures: u32) -> IntervalResults {
        let mut record = IntervalResults::default();
        (0..successes).for_each(|_| record.record(EndpointResult::Success));
        (0..failures).for_each(|_| record.record(EndpointResult::ServerError));
        record
    }

    fn latencies(result: EndpointResult, count: u32, millis: u64) -> (usize, LatencyHistogram) {
        let mut latencies = LatencyHistogram::default();
        (0..count).for_each(|_| latencies.record_result(result, Duration::from_millis(millis)));
        (0, latencies)
    }

    fn outlier_indexes(causes: Vec<(usize, EjectionCause)>) -> Vec<usize> {
        causes.into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn a_success_rate_far_below_its_peers_is_an_outlier() {
        let rates = SuccessRateRule {
            stdev_factor: 1.9,
            minimum_hosts: 5,
            request_volume: 100,
        };
        let config = config().with_rate_rules(Some(rates), None);
        let good = || interval_results(100, 0);
        let table = [
            (
                "one of five",
                vec![good(), good(), interval_results(60, 40), good(), good()],
                vec![2],
            ),
            (
                "four are too few to compare",
                vec![good(), interval_results(60, 40), good(), good()],
                vec![],
            ),
            (
                "too few requests to count",
                vec![good(), good(), interval_results(10, 40), good(), good()],
                vec![],
            ),
            ("all alike", vec![interval_results(60, 40); 6], vec![]),
        ];
        for (what, results, expected) in table {
            assert_eq!(
                outlier_indexes(find_outliers_by_results(&config, &results)),
                expected,
                "{what}"
            );
        }
        // Mean 92, deviation 16: 92 - 1.9 * 16 = 61.6.
        let EjectionCause::SuccessRate { rate, limit } = find_outliers_by_results(
            &config,
            &[good(), good(), interval_results(60, 40), good(), good()],
        )[0]
        .1
        else {
            panic!("by success rate")
        };
        assert!(
            (rate - 60.0).abs() < 1e-9 && (limit - 61.6).abs() < 1e-9,
            "{rate} {limit}"
        );
    }

    #[test]
    fn failure_percentages_at_the_threshold_are_outliers_worst_first() {
        let rule = FailurePercentageRule {
            threshold: Ratio::from_percent(85.0).expect("85 %"),
            minimum_hosts: 3,
            request_volume: 20,
        };
        let config = config().with_rate_rules(None, Some(rule));
        assert_eq!(
            outlier_indexes(find_outliers_by_results(
                &config,
                &[
                    interval_results(20, 0),
                    interval_results(3, 17),
                    interval_results(0, 20),
                    interval_results(4, 16)
                ]
            )),
            [2, 1]
        );
    }

    #[test]
    fn a_p90_far_above_the_median_of_its_peers_is_an_outlier() {
        use EndpointResult::{Cancelled, ServerError, Success, Throttled};
        let config = config().with_slow_factor(3.0).expect("above 1");
        let good = |count, millis| latencies(Success, count, millis);
        let in_other_tier = |millis| (1, good(50, millis).1);
        let table = [
            (
                "one of three",
                vec![good(50, 20), good(20, 2_000), good(50, 25)],
                vec![1],
            ),
            ("one of two", vec![good(50, 20), good(20, 2_000)], vec![1]),
            ("all alike", vec![good(50, 2_000); 3], vec![]),
            ("alone", vec![good(50, 2_000)], vec![]),
            (
                "twice as slow is not three times",
                vec![good(50, 100), good(50, 200), good(50, 100)],
                vec![],
            ),
            (
                "a difference nobody feels",
                vec![good(50, 1), good(50, 8), good(50, 1)],
                vec![],
            ),
            (
                "too few answers to judge",
                vec![good(50, 20), good(2, 2_000), good(50, 20)],
                vec![],
            ),
            (
                "few answers, all of them slow",
                vec![good(50, 20), good(3, 2_000), good(50, 20)],
                vec![1],
            ),
            (
                "a peer that refuses at once",
                vec![latencies(Throttled, 50, 1), good(50, 100)],
                vec![],
            ),
            (
                "a peer that fails at once",
                vec![latencies(ServerError, 50, 1), good(50, 100)],
                vec![],
            ),
            (
                "one that nobody waits for",
                vec![good(50, 20), latencies(Cancelled, 5, 1_000), good(50, 20)],
                vec![1],
            ),
            (
                "callers who leave at once",
                vec![good(50, 20), latencies(Cancelled, 50, 24), good(50, 1)],
                vec![],
            ),
            (
                "another tier is further away",
                vec![
                    good(50, 5),
                    good(50, 5),
                    in_other_tier(80),
                    in_other_tier(90),
                ],
                vec![],
            ),
            (
                "two of five, the slowest first",
                vec![
                    good(50, 20),
                    good(20, 900),
                    good(50, 25),
                    good(20, 2_000),
                    good(50, 20),
                ],
                vec![3, 1],
            ),
        ];
        for (what, latencies, expected) in table {
            assert_eq!(
                outlier_indexes(find_outliers_by_latency(&config, &latencies)),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn ejection_stops_at_the_last_endpoint_and_at_the_max_ejected_ratio() {
        let table = [
            (1, 0, 1, false),
            (2, 0, 2, true),
            (2, 1, 1, false),
            (3, 0, 3, true),
            (3, 1, 2, false),
            (10, 4, 6, true),
            (10, 5, 5, false),
            (10, 0, 1, false),
        ];
        for (total, ejected, available, expected) in table {
            assert_eq!(
                may_eject(&config(), total, ejected, available),
                expected,
                "{ejected} of {total}, {available} available"
            );
        }
        let seconds = Duration::from_secs;
        let none = OutlierConfig::try_new(seconds(10), seconds(30), seconds(300), Ratio::ZERO)
            .expect("fine");
        assert!(!may_eject(&none, 10, 0, 10));
        let few = OutlierConfig::try_new(
            seconds(10),
            seconds(30),
            seconds(300),
            Ratio::from_percent(10.0).expect("10 %"),
        )
        .expect("fine");
        assert!(
            may_eject(&few, 3, 0, 3),
            "ten percent of three is one, not none"
        );
    }
}

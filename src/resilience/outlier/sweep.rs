//! Comparing endpoints with their peers, once an interval.

use std::time::Duration;

use super::{Attempted, Cause, Latencies, OutlierConfig};
use crate::resilience::ratio::Ratio;

/// Answers that are enough to judge an endpoint's latency by its 90th percentile.
const LATENCY_VOLUME: u32 = 10;

/// Answers that are enough to judge it by its median: a balancer that sees that an endpoint is slow hardly asks it.
const FEW_LATENCIES: u32 = 3;

/// A difference that nobody feels is no reason to eject, whatever its factor.
const NOTICEABLE: Duration = Duration::from_millis(25);

/// What was seen of an endpoint in an interval.
#[derive(Debug, Clone, Default)]
pub struct Record {
    successes: u32,
    failures: u32,
    latencies: Latencies,
}

impl Record {
    /// Adds a result. How quickly an endpoint fails or refuses says nothing about how fast it works; one that was not waited for
    /// takes at least as long as it was.
    pub fn add(&mut self, result: Attempted, took: Duration) {
        match result {
            Attempted::Success => self.latencies.add(took),
            Attempted::Cancelled if took >= NOTICEABLE => self.latencies.add(took),
            _ => {}
        }
        match result {
            Attempted::Success | Attempted::Throttled => self.successes = self.successes.saturating_add(1),
            Attempted::GatewayError | Attempted::ServerError | Attempted::LocalOrigin => self.failures = self.failures.saturating_add(1),
            Attempted::Cancelled => {}
        }
    }

    /// The latencies.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Whether there are enough latencies for a judgement that needs no more of them.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.latencies.total() >= LATENCY_VOLUME
    }

    /// One that begins with these latencies.
    #[must_use]
    pub fn with_latencies(latencies: Latencies) -> Self {
        Self { latencies, ..Self::default() }
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
        Ratio::of(self.successes, self.total()).percent()
    }

    /// What it is compared by.
    fn latency(&self) -> Option<Duration> {
        match self.latencies.total() {
            LATENCY_VOLUME.. => Some(self.latencies.percentile(0.9)),
            FEW_LATENCIES.. => Some(self.latencies.percentile(0.5)),
            _ => None,
        }
    }
}

/// Who stands out, the worst first. `records` are those of the endpoints that are in, each with its tier: those of another zone or
/// priority are further away, so that latencies are compared within one.
#[must_use]
pub fn sweep(config: &OutlierConfig, records: &[(usize, Record)]) -> Vec<(usize, Cause)> {
    let mut found: Vec<(usize, Cause)> = Vec::new();
    let mut tiers: Vec<usize> = records.iter().map(|(tier, _)| *tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    let mut detected = vec![by_success_rate(config, records), by_failure_percentage(config, records)];
    detected.extend(tiers.into_iter().map(|tier| by_latency(config, records, tier)));
    for (index, cause) in detected.into_iter().flatten() {
        if !found.iter().any(|(known, _)| *known == index) {
            found.push((index, cause));
        }
    }
    found
}

/// Whether one more of `total` endpoints may be ejected, of which so many are already and so many could still be picked.
#[must_use]
pub fn may_eject(config: &OutlierConfig, total: usize, ejected: usize, available: usize) -> bool {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a small number")]
    let allowed = (total as f64 * config.max_ejected.value()).floor() as usize;
    let allowed = if config.max_ejected == Ratio::ZERO { 0 } else { allowed.max(1) };
    ejected < allowed && available > 1
}

fn by_success_rate(config: &OutlierConfig, records: &[(usize, Record)]) -> Vec<(usize, Cause)> {
    let Some(rule) = config.success_rate else { return Vec::new() };
    let rates = with_volume(records, rule.request_volume, rule.minimum_hosts);
    let count = f64::from(u32::try_from(rates.len()).unwrap_or(u32::MAX));
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let limit = mean - rule.deviations * variance.sqrt();
    worst_first(rates.into_iter().filter(|(_, rate)| *rate < limit).collect()).into_iter().map(|(index, rate)| (index, Cause::SuccessRate { rate, limit })).collect()
}

fn by_failure_percentage(config: &OutlierConfig, records: &[(usize, Record)]) -> Vec<(usize, Cause)> {
    let Some(rule) = config.failure_percentage else { return Vec::new() };
    let limit = rule.threshold.percent();
    let rates = with_volume(records, rule.request_volume, rule.minimum_hosts);
    let bad = rates.into_iter().filter(|(_, rate)| 100.0 - rate >= limit).collect();
    worst_first(bad).into_iter().map(|(index, rate)| (index, Cause::FailurePercentage { rate: 100.0 - rate, limit })).collect()
}

/// Success rates in percent of those with enough requests, if they are enough.
fn with_volume(records: &[(usize, Record)], volume: u32, minimum_hosts: u32) -> Vec<(usize, f64)> {
    let enough = records.iter().enumerate().filter(|(_, (_, record))| record.total() >= volume.max(1));
    let rates: Vec<_> = enough.map(|(index, (_, record))| (index, record.success_percent())).collect();
    if rates.len() >= minimum_hosts.max(1) as usize { rates } else { Vec::new() }
}

fn worst_first(mut rates: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    rates
}

/// An endpoint is compared with the median of the others, so that of two the slower one can be told.
fn by_latency(config: &OutlierConfig, records: &[(usize, Record)], tier: usize) -> Vec<(usize, Cause)> {
    let Some(factor) = config.slow_factor else { return Vec::new() };
    let members = records.iter().enumerate().filter(|(_, (of, _))| *of == tier);
    let mut known: Vec<(usize, Duration)> = members.filter_map(|(index, (_, record))| Some((index, record.latency()?))).collect();
    known.sort_by_key(|(_, latency)| *latency);
    let slow = (0..known.len()).rev().map_while(|place| {
        let (index, p90) = known[place];
        let peers = median_without(&known, place)?;
        let limit = peers.mul_f64(factor).max(peers + NOTICEABLE);
        (p90 > limit).then_some((index, Cause::Slow { p90, peers, limit }))
    });
    slow.collect()
}

/// The lower median of a sorted list without one of its places.
fn median_without(sorted: &[(usize, Duration)], place: usize) -> Option<Duration> {
    let middle = sorted.len().checked_sub(2)? / 2;
    sorted.get(if middle >= place { middle + 1 } else { middle }).map(|(_, p90)| *p90)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::outlier::{FailurePercentage, SuccessRate};

    fn config() -> OutlierConfig {
        let seconds = Duration::from_secs;
        OutlierConfig::try_new(seconds(10), seconds(30), seconds(300), Ratio::from_percent(50.0).expect("50 %")).expect("fine")
    }

    fn record(successes: u32, failures: u32, millis: u64) -> (usize, Record) {
        (0, of(&[(Attempted::Success, successes), (Attempted::ServerError, failures)], millis))
    }

    fn of(results: &[(Attempted, u32)], millis: u64) -> Record {
        let mut record = Record::default();
        for (result, count) in results {
            (0..*count).for_each(|_| record.add(*result, Duration::from_millis(millis)));
        }
        record
    }

    fn found(config: &OutlierConfig, records: &[(usize, Record)]) -> Vec<usize> {
        sweep(config, records).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn a_success_rate_far_below_the_others_stands_out() {
        let rates = SuccessRate { deviations: 1.9, minimum_hosts: 5, request_volume: 100 };
        let config = config().with_rates(Some(rates), None);
        let good = || record(100, 0, 5);
        let table = [
            ("one of five", vec![good(), good(), record(60, 40, 5), good(), good()], vec![2]),
            ("four are too few to compare", vec![good(), record(60, 40, 5), good(), good()], vec![]),
            ("too few requests to count", vec![good(), good(), record(10, 40, 5), good(), good()], vec![]),
            ("all alike", vec![record(60, 40, 5); 6], vec![]),
        ];
        for (what, records, expected) in table {
            assert_eq!(found(&config, &records), expected, "{what}");
        }
        // Mean 92, deviation 16: 92 - 1.9 * 16 = 61.6.
        let Cause::SuccessRate { rate, limit } = sweep(&config, &[good(), good(), record(60, 40, 5), good(), good()])[0].1 else { panic!("by success rate") };
        assert!((rate - 60.0).abs() < 1e-9 && (limit - 61.6).abs() < 1e-9, "{rate} {limit}");
    }

    #[test]
    fn a_share_of_failures_at_the_limit_stands_out_the_worst_first() {
        let rule = FailurePercentage { threshold: Ratio::from_percent(85.0).expect("85 %"), minimum_hosts: 3, request_volume: 20 };
        let config = config().with_rates(None, Some(rule));
        assert_eq!(found(&config, &[record(20, 0, 1), record(3, 17, 1), record(0, 20, 1), record(4, 16, 1)]), [2, 1]);
    }

    #[test]
    fn a_slow_endpoint_stands_out_against_the_median_of_its_peers() {
        let config = config().with_slow_factor(3.0).expect("above 1");
        let table = [
            ("one of three", vec![record(50, 0, 20), record(20, 0, 2_000), record(50, 0, 25)], vec![1]),
            ("one of two", vec![record(50, 0, 20), record(20, 0, 2_000)], vec![1]),
            ("all alike", vec![record(50, 0, 2_000); 3], vec![]),
            ("alone", vec![record(50, 0, 2_000)], vec![]),
            ("twice as slow is not three times", vec![record(50, 0, 100), record(50, 0, 200), record(50, 0, 100)], vec![]),
            ("a difference nobody feels", vec![record(50, 0, 1), record(50, 0, 8), record(50, 0, 1)], vec![]),
            ("too few answers to judge", vec![record(50, 0, 20), record(2, 0, 2_000), record(50, 0, 20)], vec![]),
            ("few answers, all of them slow", vec![record(50, 0, 20), record(3, 0, 2_000), record(50, 0, 20)], vec![1]),
            ("a peer that refuses at once", vec![(0, of(&[(Attempted::Throttled, 50)], 1)), record(50, 0, 100)], vec![]),
            ("a peer that fails at once", vec![record(0, 50, 1), record(50, 0, 100)], vec![]),
            ("one that nobody waits for", vec![record(50, 0, 20), (0, of(&[(Attempted::Cancelled, 5)], 1_000)), record(50, 0, 20)], vec![1]),
            ("callers who leave at once", vec![record(50, 0, 20), (0, of(&[(Attempted::Cancelled, 50)], 24)), record(50, 0, 1)], vec![]),
            ("another tier is further away", vec![record(50, 0, 5), record(50, 0, 5), (1, record(50, 0, 80).1), (1, record(50, 0, 90).1)], vec![]),
            ("two of five, the slowest first", vec![record(50, 0, 20), record(20, 0, 900), record(50, 0, 25), record(20, 0, 2_000), record(50, 0, 20)], vec![3, 1]),
        ];
        for (what, records, expected) in table {
            assert_eq!(found(&config, &records), expected, "{what}");
        }
    }

    #[test]
    fn never_the_last_one_and_not_more_than_the_share() {
        let table = [(1, 0, 1, false), (2, 0, 2, true), (2, 1, 1, false), (3, 0, 3, true), (3, 1, 2, false), (10, 4, 6, true), (10, 5, 5, false), (10, 0, 1, false)];
        for (total, ejected, available, expected) in table {
            assert_eq!(may_eject(&config(), total, ejected, available), expected, "{ejected} of {total}, {available} available");
        }
        let seconds = Duration::from_secs;
        let none = OutlierConfig::try_new(seconds(10), seconds(30), seconds(300), Ratio::ZERO).expect("fine");
        assert!(!may_eject(&none, 10, 0, 10));
        let few = OutlierConfig::try_new(seconds(10), seconds(30), seconds(300), Ratio::from_percent(10.0).expect("10 %")).expect("fine");
        assert!(may_eject(&few, 3, 0, 3), "ten percent of three is one, not none");
    }
}

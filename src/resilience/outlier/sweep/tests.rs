use crate::resilience::outlier::{FailurePercentageRule, SuccessRateRule, sweep::*};

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
    // The mean is 92 and the standard deviation 16, so the limit is 92 - 1.9 * 16 = 61.6.
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

/// Returns the slow endpoints, the slowest first, if three times the median is too slow.
fn slow_endpoints(latencies: &[(usize, LatencyHistogram)]) -> Vec<usize> {
    let config = config().with_slow_factor(3.0).expect("above 1");
    outlier_indexes(find_outliers_by_latency(&config, latencies))
}

fn successes(count: u32, millis: u64) -> (usize, LatencyHistogram) {
    latencies(EndpointResult::Success, count, millis)
}

#[test]
fn a_p90_far_above_the_median_of_its_peers_is_an_outlier() {
    let good = successes;
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
        assert_eq!(slow_endpoints(&latencies), expected, "{what}");
    }
}

#[test]
fn only_enough_latencies_of_results_that_say_something_about_latency_are_compared() {
    use EndpointResult::{Cancelled, ServerError, Throttled};
    let good = successes;
    let table = [
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
    ];
    for (what, latencies, expected) in table {
        assert_eq!(slow_endpoints(&latencies), expected, "{what}");
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
    let none =
        OutlierConfig::try_new(seconds(10), seconds(30), seconds(300), Ratio::ZERO).expect("fine");
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

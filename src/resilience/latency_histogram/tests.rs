use crate::resilience::latency_histogram::*;

#[test]
fn a_percentile_is_accurate_within_20_percent() {
    let mut latencies = LatencyHistogram::default();
    for millis in 1..=1_000 {
        latencies.record(Duration::from_millis(millis));
    }
    for (quantile, expected) in [
        (0.0, 1.0),
        (0.5, 500.0),
        (0.9, 900.0),
        (0.99, 990.0),
        (1.0, 1_000.0),
    ] {
        let found = latencies.percentile(quantile).as_secs_f64() * 1e3;
        assert!(
            found >= expected - 0.001 && found <= expected * 1.2,
            "{quantile}: {found}"
        );
    }
}

#[test]
fn latencies_outside_the_bucket_range_are_counted_in_the_outermost_buckets() {
    let mut latencies = LatencyHistogram::default();
    assert_eq!(latencies.percentile(0.9), Duration::ZERO);
    latencies.record(Duration::ZERO);
    assert_eq!(latencies.percentile(0.9), Duration::from_nanos(62_500));
    latencies.record(Duration::from_hours(48));
    assert!(latencies.percentile(1.0) > Duration::from_hours(1));
    assert_eq!(latencies.total(), 2);
}

use crate::resilience::{peak_ewma::*, some_instant};

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn a_peak_counts_at_once_and_decays_slowly() {
    let start = some_instant();
    let mut ewma = PeakEwma::new(start);
    assert_eq!(ewma.latency(start), INITIAL_LATENCY);
    ewma.record_success(400 * MILLI, start);
    assert_eq!(ewma.latency(start), 400 * MILLI);
    let later = start + DECAY_TIME;
    let left = ewma.latency(later).as_secs_f64();
    assert!(
        (left - (0.001 + 0.399 / std::f64::consts::E)).abs() < 1e-6,
        "{left}"
    );
    ewma.record_success(10 * MILLI, later);
    let mixed = ewma.latency(later).as_secs_f64();
    assert!(
        (mixed - (0.4 / std::f64::consts::E + 0.01 * (1.0 - 1.0 / std::f64::consts::E))).abs()
            < 1e-6,
        "{mixed}"
    );
}

#[test]
fn a_fast_failure_costs_more_than_a_slow_success() {
    let start = some_instant();
    let (mut refusing, mut slow) = (PeakEwma::new(start), PeakEwma::new(start));
    refusing.record_failure(MILLI, None, start);
    slow.record_success(2_000 * MILLI, start);
    assert!(refusing.cost(0, 1.0, start) > slow.cost(0, 1.0, start));
    refusing.record_failure(MILLI, Some(Duration::from_mins(1)), start);
    assert_eq!(refusing.latency(start), Duration::from_mins(1));
    refusing.record_failure(MILLI, Some(Duration::from_hours(10)), start);
    assert_eq!(refusing.latency(start), MAX_FAILURE_PENALTY);
}

#[test]
fn cost_rises_with_requests_in_flight_and_falls_with_weight() {
    let start = some_instant();
    let mut ewma = PeakEwma::new(start);
    ewma.record_success(10 * MILLI, start);
    assert!(ewma.cost(1, 1.0, start) > ewma.cost(0, 1.0, start));
    assert!(ewma.cost(4, 0.5, start) > ewma.cost(4, 1.0, start));
    assert!(
        (ewma.cost(0, 0.1, start) - ewma.cost(0, 1.0, start)).abs() < 1e-12,
        "idle ones are picked by their draws alone"
    );
}

#[test]
fn an_untried_endpoint_costs_nothing_until_it_has_a_request_in_flight() {
    let start = some_instant();
    let (mut known, new) = (PeakEwma::new(start), PeakEwma::new(start));
    known.record_success(MILLI, start);
    assert!(new.cost(0, 1.0, start) < known.cost(0, 1.0, start));
    assert!(
        new.cost(1, 1.0, start) > known.cost(1, 1.0, start),
        "and then waited for"
    );
}

#[test]
fn a_cancelled_wait_counts_as_latency_if_longer() {
    let start = some_instant();
    let mut hanging = PeakEwma::new(start);
    hanging.record_cancelled(1_000 * MILLI, start);
    assert_eq!(hanging.latency(start), 1_000 * MILLI);
    assert!(hanging.cost(0, 1.0, start) > 0.0, "it was tried");
    hanging.record_cancelled(10 * MILLI, start);
    assert_eq!(
        hanging.latency(start),
        1_000 * MILLI,
        "who leaves early proves nothing"
    );
}

#[test]
fn a_late_result_does_not_move_the_clock_back() {
    let start = some_instant();
    let mut ewma = PeakEwma::new(start + DECAY_TIME);
    ewma.record_success(MILLI, start + DECAY_TIME);
    ewma.record_success(100 * MILLI, start);
    assert_eq!(ewma.latency(start + DECAY_TIME), 100 * MILLI);
    assert_eq!(ewma.latency(start), 100 * MILLI);
}

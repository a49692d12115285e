use crate::resilience::{outlier::*, ratio::Ratio, some_instant};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> OutlierConfig {
    OutlierConfig::try_new(
        10 * SECOND,
        30 * SECOND,
        300 * SECOND,
        Ratio::from_percent(50.0).expect("50 %"),
    )
    .expect("fine")
    .with_consecutive_thresholds(ConsecutiveThresholds {
        failures: 5,
        gateway_errors: 3,
        local_origin_failures: 2,
    })
}

fn settle_result(
    detector: &mut OutlierDetector,
    result: EndpointResult,
    now: Instant,
) -> OutlierVerdict {
    let permit = detector.issue_permit();
    settle_permit(detector, &permit, result, now)
}

/// Settles a permit with the result of an attempt that took one second.
fn settle_permit(
    detector: &mut OutlierDetector,
    permit: &OutlierPermit,
    result: EndpointResult,
    now: Instant,
) -> OutlierVerdict {
    let timed = TimedResult {
        result,
        took: SECOND,
        at: now,
    };
    detector.settle(&config(), permit, timed, 0.0)
}

#[test]
fn consecutive_failures_at_the_threshold_should_eject() {
    use EndpointResult::{
        Cancelled as C, GatewayError as G, LocalOriginFailure as L, ServerError as E, Success as S,
        Throttled as T,
    };
    let table: &[(&[EndpointResult], OutlierVerdict)] = &[
        (&[E, E, E, E], OutlierVerdict::Unchanged),
        (
            &[E, E, E, E, E],
            OutlierVerdict::ShouldEject(EjectionCause::Consecutive5xx(5)),
        ),
        (&[E, E, S, E, E, E, E], OutlierVerdict::Unchanged),
        (&[E, E, T, E, E, E, E], OutlierVerdict::Unchanged),
        (
            &[E, E, C, E, E, E],
            OutlierVerdict::ShouldEject(EjectionCause::Consecutive5xx(5)),
        ),
        (
            &[G, G, G],
            OutlierVerdict::ShouldEject(EjectionCause::ConsecutiveGatewayErrors(3)),
        ),
        (&[G, G, E, G], OutlierVerdict::Unchanged),
        (
            &[L, L],
            OutlierVerdict::ShouldEject(EjectionCause::ConsecutiveLocalOriginFailures(2)),
        ),
        (
            &[L, E, L, E, L],
            OutlierVerdict::ShouldEject(EjectionCause::Consecutive5xx(5)),
        ),
        (&[C, C, C, C, C, C], OutlierVerdict::Unchanged),
    ];
    for (results, expected) in table {
        let (mut detector, now) = (OutlierDetector::default(), some_instant());
        let verdict = results
            .iter()
            .map(|result| settle_result(&mut detector, *result, now))
            .last();
        assert_eq!(verdict, Some(*expected), "{results:?}");
    }
}

#[test]
fn a_threshold_of_zero_never_ejects() {
    let config = config().with_consecutive_thresholds(ConsecutiveThresholds {
        failures: 0,
        gateway_errors: 0,
        local_origin_failures: 0,
    });
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    for _ in 0..100 {
        let permit = detector.issue_permit();
        let timed = TimedResult {
            result: EndpointResult::LocalOriginFailure,
            took: SECOND,
            at: now,
        };
        assert_eq!(
            detector.settle(&config, &permit, timed, 0.0),
            OutlierVerdict::Unchanged
        );
    }
}

#[test]
fn an_ejected_endpoint_is_readmitted_by_one_successful_probe() {
    let (mut detector, start) = (OutlierDetector::default(), some_instant());
    assert_eq!(
        detector.eject(&config(), EjectionCause::Consecutive5xx(5), start, 0.0),
        30 * SECOND
    );
    assert!(
        !detector.end_expired_ejection(start + 30 * SECOND - Duration::from_nanos(1))
            && detector.try_acquire_probe(true, start).is_none()
    );
    let probation_start = start + 30 * SECOND;
    assert!(
        detector.end_expired_ejection(probation_start)
            && !detector.end_expired_ejection(probation_start),
        "told once"
    );
    let probe = detector
        .try_acquire_probe(true, probation_start)
        .expect("the place is free");
    assert!(
        detector.try_acquire_probe(true, probation_start).is_none(),
        "one at a time"
    );
    assert_eq!(
        settle_permit(
            &mut detector,
            &probe,
            EndpointResult::Success,
            probation_start
        ),
        OutlierVerdict::Readmitted
    );
    assert_eq!(detector.ejection_state(), EjectionState::NotEjected);
}

/// Ends the ejection at `now` and settles one probe with `result`.
fn settle_probe_result(
    detector: &mut OutlierDetector,
    result: EndpointResult,
    took: Duration,
    now: Instant,
) -> OutlierVerdict {
    assert!(detector.end_expired_ejection(now));
    let probe = detector.try_acquire_probe(true, now).expect("on probation");
    let timed = TimedResult {
        result,
        took,
        at: now,
    };
    detector.settle(&config(), &probe, timed, 0.0)
}

#[test]
fn ejection_time_grows_up_to_the_maximum_and_a_failed_probe_uses_the_base_time() {
    let (mut detector, mut now) = (OutlierDetector::default(), some_instant());
    for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
        assert_eq!(
            detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0),
            expected * SECOND
        );
        now += 300 * SECOND;
        assert_eq!(
            settle_probe_result(&mut detector, EndpointResult::ServerError, SECOND, now),
            OutlierVerdict::EjectedAgain(EjectionCause::FailedProbe, 30 * SECOND)
        );
        now += 30 * SECOND;
        assert_eq!(
            settle_probe_result(&mut detector, EndpointResult::Success, SECOND, now),
            OutlierVerdict::Readmitted
        );
    }
    assert_eq!(
        detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 1.0),
        330 * SECOND,
        "jitter comes on top"
    );
}

#[test]
fn an_endpoint_ejected_for_latency_needs_a_fast_probe() {
    let (mut detector, mut now) = (OutlierDetector::default(), some_instant());
    let limit = SECOND / 10;
    detector.eject(
        &config(),
        EjectionCause::HighLatency {
            p90: 2 * SECOND,
            peer_median: SECOND / 30,
            limit,
        },
        now,
        0.0,
    );
    now += 30 * SECOND;
    assert_eq!(
        settle_probe_result(&mut detector, EndpointResult::Success, 2 * SECOND, now),
        OutlierVerdict::EjectedAgain(
            EjectionCause::SlowProbe {
                took: 2 * SECOND,
                limit
            },
            30 * SECOND
        )
    );
    now += 30 * SECOND;
    assert_eq!(
        settle_probe_result(&mut detector, EndpointResult::Success, limit, now),
        OutlierVerdict::Readmitted
    );
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    now += 60 * SECOND;
    assert_eq!(
        settle_probe_result(&mut detector, EndpointResult::Success, 2 * SECOND, now),
        OutlierVerdict::Readmitted,
        "its latency was no matter"
    );
}

#[test]
fn a_probe_without_a_result_times_out_and_another_is_allowed() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    let probation_start = now + 30 * SECOND;
    detector.end_expired_ejection(probation_start);
    let first = detector
        .try_acquire_probe(true, probation_start)
        .expect("the place is free");
    assert!(
        detector
            .try_acquire_probe(
                true,
                probation_start + PROBE_TIMEOUT - Duration::from_nanos(1)
            )
            .is_none()
    );
    let second = detector
        .try_acquire_probe(true, probation_start + PROBE_TIMEOUT)
        .expect("it has waited long enough");
    assert_eq!(
        settle_permit(
            &mut detector,
            &first,
            EndpointResult::LocalOriginFailure,
            probation_start
        ),
        OutlierVerdict::Unchanged,
        "too late"
    );
    assert_eq!(
        settle_permit(
            &mut detector,
            &second,
            EndpointResult::Success,
            probation_start
        ),
        OutlierVerdict::Readmitted
    );
}

#[test]
fn few_latencies_are_gathered_over_a_bounded_number_of_half_intervals() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    let mut half = |answers: u32| {
        (0..answers).for_each(|_| {
            assert_eq!(
                settle_result(&mut detector, EndpointResult::Success, now),
                OutlierVerdict::Unchanged
            )
        });
        detector.end_half_interval().total()
    };
    assert_eq!(
        [half(4), half(4), half(4), half(2)],
        [4, 8, 12, 2],
        "enough are judged once"
    );
    assert_eq!(
        [half(1), half(1), half(1), half(1), half(1), half(1)],
        [3, 4, 5, 6, 7, 1],
        "old ones are dropped"
    );
}

#[test]
fn a_cancelled_probe_releases_its_permit() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    detector.end_expired_ejection(now + 30 * SECOND);
    let probe = detector.try_acquire_probe(true, now).expect("on probation");
    assert_eq!(
        settle_permit(&mut detector, &probe, EndpointResult::Cancelled, now),
        OutlierVerdict::Unchanged
    );
    assert!(detector.try_acquire_probe(true, now).is_some());
}

#[test]
fn a_non_idempotent_request_probes_only_after_a_delay() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    let probation_start = now + 30 * SECOND;
    detector.end_expired_ejection(probation_start);
    assert!(
        detector
            .try_acquire_probe(
                false,
                probation_start + NON_IDEMPOTENT_PROBE_DELAY - Duration::from_nanos(1)
            )
            .is_none()
    );
    assert!(
        detector
            .try_acquire_probe(false, probation_start + NON_IDEMPOTENT_PROBE_DELAY)
            .is_some()
    );
}

#[test]
fn late_results_neither_eject_nor_readmit() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    let early_permit = detector.issue_permit();
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    assert_eq!(
        settle_permit(&mut detector, &early_permit, EndpointResult::Success, now),
        OutlierVerdict::Unchanged
    );
    detector.end_expired_ejection(now + 30 * SECOND);
    assert_eq!(
        settle_permit(
            &mut detector,
            &early_permit,
            EndpointResult::ServerError,
            now
        ),
        OutlierVerdict::Unchanged
    );
    assert!(matches!(
        detector.ejection_state(),
        EjectionState::Probation {
            probe_started_at: None,
            ..
        }
    ));
    let probe = detector.try_acquire_probe(true, now).expect("on probation");
    detector.uneject();
    assert_eq!(
        settle_permit(&mut detector, &probe, EndpointResult::ServerError, now),
        OutlierVerdict::Unchanged,
        "of an earlier generation"
    );
    assert_eq!(detector.ejection_state(), EjectionState::NotEjected);
}

#[test]
fn only_enough_successes_shorten_the_next_ejection() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    detector.end_expired_ejection(now + 30 * SECOND);
    let probe = detector.try_acquire_probe(true, now).expect("on probation");
    assert_eq!(
        settle_permit(&mut detector, &probe, EndpointResult::Success, now),
        OutlierVerdict::Readmitted
    );
    let mut interval = |successes: u32, failures: u32| {
        for (count, result) in [
            (successes, EndpointResult::Success),
            (failures, EndpointResult::ServerError),
        ] {
            (0..count).for_each(|_| {
                assert_eq!(
                    settle_result(&mut detector, result, now),
                    OutlierVerdict::Unchanged
                )
            });
        }
        detector.end_interval();
        detector.times_ejected
    };
    assert_eq!(
        [
            interval(0, 0),
            interval(9, 0),
            interval(50, 1),
            interval(5, 0)
        ],
        [1, 1, 1, 1]
    );
    assert_eq!(
        [interval(4, 0), interval(1, 0), interval(10, 0)],
        [1, 0, 0],
        "it is proof over several intervals"
    );
}

#[test]
fn uneject_clears_the_ejection_history() {
    let (mut detector, now) = (OutlierDetector::default(), some_instant());
    detector.eject(&config(), EjectionCause::Consecutive5xx(5), now, 0.0);
    detector.uneject();
    assert_eq!(
        (detector.ejection_state(), detector.times_ejected),
        (EjectionState::NotEjected, 0)
    );
}

use super::*;
use crate::resilience::{ratio::Ratio, some_instant};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> OutlierConfig {
    OutlierConfig::try_new(
        10 * SECOND,
        30 * SECOND,
        300 * SECOND,
        Ratio::from_percent(50.0).expect("50 %"),
    )
    .expect("fine")
    .with_runs(Runs {
        failures: 5,
        gateway_errors: 3,
        local_origin: 2,
    })
}

fn settle(host: &mut Host, result: Attempted, now: Instant) -> Verdict {
    let permit = host.admit();
    host.settle(&config(), &permit, result, SECOND, now, 0.0)
}

#[test]
fn runs_of_failures_make_a_suspect() {
    use Attempted::{
        Cancelled as C, GatewayError as G, LocalOrigin as L, ServerError as E, Success as S,
        Throttled as T,
    };
    let table: &[(&[Attempted], Verdict)] = &[
        (&[E, E, E, E], Verdict::Stays),
        (&[E, E, E, E, E], Verdict::Suspect(Cause::Consecutive5xx(5))),
        (&[E, E, S, E, E, E, E], Verdict::Stays),
        (&[E, E, T, E, E, E, E], Verdict::Stays),
        (
            &[E, E, C, E, E, E],
            Verdict::Suspect(Cause::Consecutive5xx(5)),
        ),
        (
            &[G, G, G],
            Verdict::Suspect(Cause::ConsecutiveGatewayErrors(3)),
        ),
        (&[G, G, E, G], Verdict::Stays),
        (
            &[L, L],
            Verdict::Suspect(Cause::ConsecutiveLocalOriginFailures(2)),
        ),
        (&[L, E, L, E, L], Verdict::Suspect(Cause::Consecutive5xx(5))),
        (&[C, C, C, C, C, C], Verdict::Stays),
    ];
    for (results, expected) in table {
        let (mut host, now) = (Host::default(), some_instant());
        let verdict = results
            .iter()
            .map(|result| settle(&mut host, *result, now))
            .last();
        assert_eq!(verdict, Some(*expected), "{results:?}");
    }
}

#[test]
fn a_run_that_is_switched_off_ejects_nobody() {
    let config = config().with_runs(Runs {
        failures: 0,
        gateway_errors: 0,
        local_origin: 0,
    });
    let (mut host, now) = (Host::default(), some_instant());
    for _ in 0..100 {
        let permit = host.admit();
        assert_eq!(
            host.settle(&config, &permit, Attempted::LocalOrigin, SECOND, now, 0.0),
            Verdict::Stays
        );
    }
}

#[test]
fn who_was_ejected_comes_back_through_one_probe() {
    let (mut host, start) = (Host::default(), some_instant());
    assert_eq!(
        host.eject(&config(), Cause::Consecutive5xx(5), start, 0.0),
        30 * SECOND
    );
    assert!(
        !host.tick(start + 30 * SECOND - Duration::from_nanos(1))
            && host.try_probe(true, start).is_none()
    );
    let back = start + 30 * SECOND;
    assert!(host.tick(back) && !host.tick(back), "told once");
    let probe = host.try_probe(true, back).expect("the place is free");
    assert!(host.try_probe(true, back).is_none(), "one at a time");
    assert_eq!(
        host.settle(&config(), &probe, Attempted::Success, SECOND, back, 0.0),
        Verdict::Readmitted
    );
    assert_eq!(host.standing(), Standing::In);
}

/// Fails or passes the probe at `now`.
fn probe(host: &mut Host, result: Attempted, took: Duration, now: Instant) -> Verdict {
    assert!(host.tick(now));
    let probe = host.try_probe(true, now).expect("on probation");
    host.settle(&config(), &probe, result, took, now, 0.0)
}

#[test]
fn each_ejection_is_longer_up_to_the_maximum_but_a_failed_probe_waits_the_shortest_time() {
    let (mut host, mut now) = (Host::default(), some_instant());
    for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
        assert_eq!(
            host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0),
            expected * SECOND
        );
        now += 300 * SECOND;
        assert_eq!(
            probe(&mut host, Attempted::ServerError, SECOND, now),
            Verdict::Again(Cause::Probe, 30 * SECOND)
        );
        now += 30 * SECOND;
        assert_eq!(
            probe(&mut host, Attempted::Success, SECOND, now),
            Verdict::Readmitted
        );
    }
    assert_eq!(
        host.eject(&config(), Cause::Consecutive5xx(5), now, 1.0),
        330 * SECOND,
        "jitter comes on top"
    );
}

#[test]
fn who_was_too_slow_has_to_be_quick() {
    let (mut host, mut now) = (Host::default(), some_instant());
    let limit = SECOND / 10;
    host.eject(
        &config(),
        Cause::Slow {
            p90: 2 * SECOND,
            peers: SECOND / 30,
            limit,
        },
        now,
        0.0,
    );
    now += 30 * SECOND;
    assert_eq!(
        probe(&mut host, Attempted::Success, 2 * SECOND, now),
        Verdict::Again(
            Cause::SlowProbe {
                took: 2 * SECOND,
                limit
            },
            30 * SECOND
        )
    );
    now += 30 * SECOND;
    assert_eq!(
        probe(&mut host, Attempted::Success, limit, now),
        Verdict::Readmitted
    );
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    now += 60 * SECOND;
    assert_eq!(
        probe(&mut host, Attempted::Success, 2 * SECOND, now),
        Verdict::Readmitted,
        "its latency was no matter"
    );
}

#[test]
fn a_probe_of_which_nothing_is_heard_makes_room_for_another() {
    let (mut host, now) = (Host::default(), some_instant());
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    let back = now + 30 * SECOND;
    host.tick(back);
    let first = host.try_probe(true, back).expect("the place is free");
    assert!(
        host.try_probe(true, back + PROBE_TIME - Duration::from_nanos(1))
            .is_none()
    );
    let second = host
        .try_probe(true, back + PROBE_TIME)
        .expect("it has waited long enough");
    assert_eq!(
        host.settle(&config(), &first, Attempted::LocalOrigin, SECOND, back, 0.0),
        Verdict::Stays,
        "too late"
    );
    assert_eq!(
        host.settle(&config(), &second, Attempted::Success, SECOND, back, 0.0),
        Verdict::Readmitted
    );
}

#[test]
fn few_latencies_are_gathered_but_not_for_ever() {
    let (mut host, now) = (Host::default(), some_instant());
    let mut half = |answers: u32| {
        (0..answers)
            .for_each(|_| assert_eq!(settle(&mut host, Attempted::Success, now), Verdict::Stays));
        host.end_half_interval().total()
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
fn a_probe_that_is_given_up_gives_its_place_back() {
    let (mut host, now) = (Host::default(), some_instant());
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    host.tick(now + 30 * SECOND);
    let probe = host.try_probe(true, now).expect("on probation");
    assert_eq!(
        host.settle(&config(), &probe, Attempted::Cancelled, SECOND, now, 0.0),
        Verdict::Stays
    );
    assert!(host.try_probe(true, now).is_some());
}

#[test]
fn a_request_that_cannot_be_repeated_is_the_probe_only_if_no_other_comes() {
    let (mut host, now) = (Host::default(), some_instant());
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    let back = now + 30 * SECOND;
    host.tick(back);
    assert!(
        host.try_probe(false, back + PATIENCE - Duration::from_nanos(1))
            .is_none()
    );
    assert!(host.try_probe(false, back + PATIENCE).is_some());
}

#[test]
fn late_results_neither_eject_nor_readmit() {
    let (mut host, now) = (Host::default(), some_instant());
    let before = host.admit();
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    assert_eq!(
        host.settle(&config(), &before, Attempted::Success, SECOND, now, 0.0),
        Verdict::Stays
    );
    host.tick(now + 30 * SECOND);
    assert_eq!(
        host.settle(&config(), &before, Attempted::ServerError, SECOND, now, 0.0),
        Verdict::Stays
    );
    assert!(matches!(
        host.standing(),
        Standing::Probation { probing: None, .. }
    ));
    let probe = host.try_probe(true, now).expect("on probation");
    host.pardon();
    assert_eq!(
        host.settle(&config(), &probe, Attempted::ServerError, SECOND, now, 0.0),
        Verdict::Stays,
        "of an earlier generation"
    );
    assert_eq!(host.standing(), Standing::In);
}

#[test]
fn only_proven_health_makes_the_next_ejection_shorter() {
    let (mut host, now) = (Host::default(), some_instant());
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    host.tick(now + 30 * SECOND);
    let probe = host.try_probe(true, now).expect("on probation");
    assert_eq!(
        host.settle(&config(), &probe, Attempted::Success, SECOND, now, 0.0),
        Verdict::Readmitted
    );
    let mut interval = |successes: u32, failures: u32| {
        for (count, result) in [
            (successes, Attempted::Success),
            (failures, Attempted::ServerError),
        ] {
            (0..count).for_each(|_| assert_eq!(settle(&mut host, result, now), Verdict::Stays));
        }
        host.end_interval();
        host.times_ejected()
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
fn a_pardon_forgets_everything() {
    let (mut host, now) = (Host::default(), some_instant());
    host.eject(&config(), Cause::Consecutive5xx(5), now, 0.0);
    host.pardon();
    assert_eq!((host.standing(), host.times_ejected()), (Standing::In, 0));
}

use Stage::{Announcing, AwaitingQuiet, ClosingStreams, Drained, Terminated};

use crate::resilience::{lifecycle::*, some_instant};

fn at(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

fn traffic(start: Instant, in_flight: usize, last: Option<u64>) -> DirectionLoad {
    DirectionLoad {
        in_flight,
        last_started_at: last.map(|millis| at(start, millis)),
    }
}

fn inbound_load(start: Instant, in_flight: usize, last: Option<u64>) -> InstanceLoad {
    InstanceLoad {
        inbound: traffic(start, in_flight, last),
        outbound: DirectionLoad::default(),
    }
}

/// Uses a delay of 5 s, a quiet period of 1 s, a soft timeout of 15 s and a timeout of 25 s.
/// Termination is not requested.
#[test]
fn each_stage_follows_from_time_and_what_is_in_flight() {
    let start = some_instant();
    let table = [
        (0, 0, None, Announcing),
        (4_999, 0, None, Announcing),
        (5_000, 0, None, Drained),
        (5_000, 1, None, AwaitingQuiet),
        (5_000, 0, Some(4_500), AwaitingQuiet),
        (5_499, 0, Some(4_500), AwaitingQuiet),
        (5_500, 0, Some(4_500), Drained),
        // Quiet counts from the start of the latest request, so the end of a long one adds no
        // wait.
        (12_000, 0, Some(3_000), Drained),
        (14_999, 3, Some(14_000), AwaitingQuiet),
        (15_000, 3, Some(14_000), ClosingStreams),
        (24_999, 3, Some(24_000), ClosingStreams),
        (25_000, 3, Some(24_999), Drained),
        (25_000, 0, Some(24_999), Drained),
        (99_000, 0, None, Drained),
    ];
    for (now, in_flight, last, expected) in table {
        let mut drain = DrainSequence::begin(DrainConfig::default(), start);
        assert_eq!(
            drain.advance(&inbound_load(start, in_flight, last), at(start, now)),
            expected,
            "at {now} with {in_flight}"
        );
        assert_eq!(drain.is_clean(), in_flight == 0);
    }
}

#[test]
fn terminates_when_requested_and_outbound_is_quiet() {
    let start = some_instant();
    // Columns: termination requested at, outbound in flight, latest outbound start, now,
    // terminated.
    let table = [
        (None, 0, None, 90_000, false),
        (Some(0), 0, None, 5_000, true),
        (Some(0), 0, Some(4_500), 5_499, false),
        (Some(0), 0, Some(4_500), 5_500, true),
        (Some(0), 1, Some(4_500), 24_999, false),
        (Some(0), 1, Some(4_500), 25_000, true),
        (Some(30_000), 0, None, 30_000, true),
        (Some(30_000), 0, Some(29_900), 30_899, false),
        (Some(30_000), 0, Some(29_900), 30_900, true),
        (Some(30_000), 2, Some(29_900), 30_999, false),
        (Some(30_000), 2, Some(30_900), 31_000, true),
    ];
    for (requested_at, in_flight, last, now, is_terminated) in table {
        let mut drain = DrainSequence::begin(DrainConfig::default(), start);
        let load = InstanceLoad {
            outbound: traffic(start, in_flight, last),
            ..InstanceLoad::default()
        };
        assert_eq!(
            drain.advance(&load, at(start, 5_000)),
            if requested_at == Some(0) {
                drain.stage()
            } else {
                Drained
            }
        );
        if let Some(requested_at) = requested_at {
            drain.request_termination(at(start, requested_at));
            drain.request_termination(at(start, requested_at + 60_000));
        }
        let stage = drain.advance(&load, at(start, now));
        assert_eq!(
            stage == Terminated,
            is_terminated,
            "asked at {requested_at:?}, {in_flight} in flight, last {last:?}, at {now}: {stage:?}"
        );
        assert!(!is_terminated || drain.is_clean() == (in_flight == 0));
    }
}

#[test]
fn a_stage_never_goes_back() {
    let start = some_instant();
    let mut drain = DrainSequence::begin(DrainConfig::default(), start);
    assert_eq!(
        drain.advance(&inbound_load(start, 0, None), at(start, 5_000)),
        Drained
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 7, Some(5_100)), at(start, 5_200)),
        Drained,
        "late arrivals change nothing"
    );
    assert!(drain.is_clean());
    drain.request_termination(at(start, 6_000));
    assert_eq!(
        drain.advance(&inbound_load(start, 0, None), at(start, 6_000)),
        Terminated
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 1, Some(6_000)), at(start, 1)),
        Terminated
    );
}

#[test]
fn a_handed_over_drain_skips_the_delay_and_terminates_by_itself() {
    let start = some_instant();
    let mut drain = DrainSequence::begin_handed_over(DrainConfig::default(), start);
    assert_eq!(drain.stage(), AwaitingQuiet);
    assert_eq!(
        drain.advance(&inbound_load(start, 1, Some(0)), start),
        AwaitingQuiet
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 0, Some(0)), at(start, 999)),
        AwaitingQuiet,
        "a connection that is open may carry another request"
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 0, Some(0)), at(start, 1_000)),
        Terminated
    );
}

#[test]
fn a_handed_over_drain_serves_both_directions_until_both_are_quiet() {
    let start = some_instant();
    // Columns: inbound and outbound in flight, latest start of each, now, stage.
    let table = [
        (0, 1, Some(0), Some(0), 24_999, ClosingStreams),
        (0, 0, Some(0), Some(500), 1_499, AwaitingQuiet),
        (0, 0, Some(0), Some(500), 1_500, Terminated),
        (1, 0, Some(0), None, 24_999, ClosingStreams),
        (1, 1, Some(0), Some(0), 25_000, Terminated),
    ];
    for (inbound, outbound, last_inbound, last_outbound, now, expected) in table {
        let load = InstanceLoad {
            inbound: traffic(start, inbound, last_inbound),
            outbound: traffic(start, outbound, last_outbound),
        };
        let mut drain = DrainSequence::begin_handed_over(DrainConfig::default(), start);
        assert_eq!(
            drain.advance(&load, at(start, now)),
            expected,
            "{inbound} and {outbound} in flight at {now}"
        );
        assert!(expected != Terminated || drain.is_clean() == (inbound + outbound == 0));
    }
}

#[test]
fn skip_delay_ends_announcing_at_once() {
    let start = some_instant();
    let mut drain = DrainSequence::begin(DrainConfig::default(), start);
    assert_eq!(
        drain.advance(&InstanceLoad::default(), at(start, 1_000)),
        Announcing
    );
    drain.skip_delay();
    drain.request_termination(at(start, 1_000));
    assert_eq!(
        drain.advance(&inbound_load(start, 1, Some(0)), at(start, 1_000)),
        AwaitingQuiet
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 0, Some(0)), at(start, 1_001)),
        Terminated
    );
}

/// A caller that wakes only at `next_deadline` observes each change at the earliest time.
#[test]
fn the_stage_changes_only_at_the_next_deadline() {
    let start = some_instant();
    for (callers, app) in [
        (None, None),
        (Some(3_000), Some(4_900)),
        (Some(4_900), Some(30_000)),
        (Some(14_900), None),
    ] {
        for in_flight in [0, 1] {
            let load = InstanceLoad {
                inbound: traffic(start, in_flight, callers),
                outbound: traffic(start, 0, app),
            };
            let mut drain = DrainSequence::begin(DrainConfig::default(), start);
            drain.request_termination(start);
            let mut wakes = 0;
            while drain.stage() != Terminated {
                let next = drain.next_deadline(&load).unwrap();
                let before = drain.stage();
                assert_eq!(
                    drain.clone().advance(&load, next - Duration::from_nanos(1)),
                    before,
                    "{callers:?} {app:?} before {:?}",
                    next - start
                );
                drain.advance(&load, next);
                assert_ne!(
                    drain.stage(),
                    before,
                    "nothing happened at {:?}",
                    next - start
                );
                wakes += 1;
            }
            assert!(wakes <= 5);
            assert_eq!(drain.next_deadline(&load), None);
        }
    }
}

#[test]
fn a_timeout_below_the_delay_takes_precedence() {
    let start = some_instant();
    let config = DrainConfig {
        timeout: Duration::from_secs(2),
        ..DrainConfig::default()
    };
    let mut drain = DrainSequence::begin(config, start);
    assert_eq!(
        drain.next_deadline(&inbound_load(start, 1, None)),
        Some(at(start, 2_000))
    );
    assert_eq!(
        drain.advance(&inbound_load(start, 1, None), at(start, 2_000)),
        Drained
    );
    assert!(!drain.is_clean());
}

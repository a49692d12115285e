use super::*;
use crate::resilience::some_instant;
use Stage::{Announcing, Drained, Gone, Parting, Waiting};

fn at(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

fn traffic(start: Instant, in_flight: usize, last: Option<u64>) -> Traffic {
    Traffic {
        in_flight,
        last_began: last.map(|millis| at(start, millis)),
    }
}

fn callers(start: Instant, in_flight: usize, last: Option<u64>) -> Load {
    Load {
        inbound: traffic(start, in_flight, last),
        outbound: Traffic::default(),
    }
}

/// Delay 5 s, quiet 1 s, soft timeout 15 s, timeout 25 s; nobody asks it to go.
#[test]
fn each_stage_follows_from_time_and_what_is_in_flight() {
    let start = some_instant();
    let table = [
        (0, 0, None, Announcing),
        (4_999, 0, None, Announcing),
        (5_000, 0, None, Drained),
        (5_000, 1, None, Waiting),
        (5_000, 0, Some(4_500), Waiting),
        (5_499, 0, Some(4_500), Waiting),
        (5_500, 0, Some(4_500), Drained),
        // A long one that ends is not followed by another wait: quiet counts from the last that began.
        (12_000, 0, Some(3_000), Drained),
        (14_999, 3, Some(14_000), Waiting),
        (15_000, 3, Some(14_000), Parting),
        (24_999, 3, Some(24_000), Parting),
        (25_000, 3, Some(24_999), Drained),
        (25_000, 0, Some(24_999), Drained),
        (99_000, 0, None, Drained),
    ];
    for (now, in_flight, last, expected) in table {
        let mut drain = Drain::begin(DrainConfig::default(), start);
        assert_eq!(
            drain.advance(&callers(start, in_flight, last), at(start, now)),
            expected,
            "at {now} with {in_flight}"
        );
        assert_eq!(drain.is_clean(), in_flight == 0);
    }
}

#[test]
fn it_goes_when_it_is_asked_to_and_the_app_is_quiet() {
    let start = some_instant();
    // Asked at, in flight of the app, its last call, now, gone.
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
    for (asked, in_flight, last, now, is_gone) in table {
        let mut drain = Drain::begin(DrainConfig::default(), start);
        let load = Load {
            outbound: traffic(start, in_flight, last),
            ..Load::default()
        };
        assert_eq!(
            drain.advance(&load, at(start, 5_000)),
            if asked == Some(0) {
                drain.stage()
            } else {
                Drained
            }
        );
        if let Some(asked) = asked {
            drain.go(at(start, asked));
            drain.go(at(start, asked + 60_000));
        }
        let stage = drain.advance(&load, at(start, now));
        assert_eq!(
            stage == Gone,
            is_gone,
            "asked at {asked:?}, {in_flight} in flight, last {last:?}, at {now}: {stage:?}"
        );
        assert!(!is_gone || drain.is_clean() == (in_flight == 0));
    }
}

#[test]
fn a_stage_never_comes_back() {
    let start = some_instant();
    let mut drain = Drain::begin(DrainConfig::default(), start);
    assert_eq!(
        drain.advance(&callers(start, 0, None), at(start, 5_000)),
        Drained
    );
    assert_eq!(
        drain.advance(&callers(start, 7, Some(5_100)), at(start, 5_200)),
        Drained,
        "late arrivals change nothing"
    );
    assert!(drain.is_clean());
    drain.go(at(start, 6_000));
    assert_eq!(
        drain.advance(&callers(start, 0, None), at(start, 6_000)),
        Gone
    );
    assert_eq!(
        drain.advance(&callers(start, 1, Some(6_000)), at(start, 1)),
        Gone
    );
}

#[test]
fn who_is_relieved_waits_for_no_news_to_travel_and_goes_by_itself() {
    let start = some_instant();
    let mut drain = Drain::relieved(DrainConfig::default(), start);
    assert_eq!(drain.stage(), Waiting);
    assert_eq!(drain.advance(&callers(start, 1, Some(0)), start), Waiting);
    assert_eq!(
        drain.advance(&callers(start, 0, Some(0)), at(start, 999)),
        Waiting,
        "a connection that is open may carry another request"
    );
    assert_eq!(
        drain.advance(&callers(start, 0, Some(0)), at(start, 1_000)),
        Gone
    );
}

#[test]
fn who_is_relieved_serves_callers_and_app_until_both_are_quiet() {
    let start = some_instant();
    // In flight of callers and app, the last of each, now, the stage.
    let table = [
        (0, 1, Some(0), Some(0), 24_999, Parting),
        (0, 0, Some(0), Some(500), 1_499, Waiting),
        (0, 0, Some(0), Some(500), 1_500, Gone),
        (1, 0, Some(0), None, 24_999, Parting),
        (1, 1, Some(0), Some(0), 25_000, Gone),
    ];
    for (inbound, outbound, last_inbound, last_outbound, now, expected) in table {
        let load = Load {
            inbound: traffic(start, inbound, last_inbound),
            outbound: traffic(start, outbound, last_outbound),
        };
        let mut drain = Drain::relieved(DrainConfig::default(), start);
        assert_eq!(
            drain.advance(&load, at(start, now)),
            expected,
            "{inbound} and {outbound} in flight at {now}"
        );
        assert!(expected != Gone || drain.is_clean() == (inbound + outbound == 0));
    }
}

#[test]
fn when_the_app_is_gone_no_news_has_to_travel_any_more() {
    let start = some_instant();
    let mut drain = Drain::begin(DrainConfig::default(), start);
    assert_eq!(
        drain.advance(&Load::default(), at(start, 1_000)),
        Announcing
    );
    drain.skip_delay();
    drain.go(at(start, 1_000));
    assert_eq!(
        drain.advance(&callers(start, 1, Some(0)), at(start, 1_000)),
        Waiting
    );
    assert_eq!(
        drain.advance(&callers(start, 0, Some(0)), at(start, 1_001)),
        Gone
    );
}

/// Waking only at the announced times is enough to move on at the first possible moment.
#[test]
fn nothing_changes_before_the_announced_time() {
    let start = some_instant();
    for (callers, app) in [
        (None, None),
        (Some(3_000), Some(4_900)),
        (Some(4_900), Some(30_000)),
        (Some(14_900), None),
    ] {
        for in_flight in [0, 1] {
            let load = Load {
                inbound: traffic(start, in_flight, callers),
                outbound: traffic(start, 0, app),
            };
            let mut drain = Drain::begin(DrainConfig::default(), start);
            drain.go(start);
            let mut wakes = 0;
            while drain.stage() != Gone {
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
fn a_timeout_below_the_delay_wins() {
    let start = some_instant();
    let config = DrainConfig {
        timeout: Duration::from_secs(2),
        ..DrainConfig::default()
    };
    let mut drain = Drain::begin(config, start);
    assert_eq!(
        drain.next_deadline(&callers(start, 1, None)),
        Some(at(start, 2_000))
    );
    assert_eq!(
        drain.advance(&callers(start, 1, None), at(start, 2_000)),
        Drained
    );
    assert!(!drain.is_clean());
}

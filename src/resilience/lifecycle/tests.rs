use super::*;
use crate::resilience::some_instant;
use DrainPhase::{Announcing, Done, Waiting};

fn at(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

/// Delay 5 s, quiet 1 s, timeout 25 s.
#[test]
fn each_phase_follows_from_time_and_what_is_in_flight() {
    let start = some_instant();
    let drain = Drain::begin(DrainConfig::default(), start);
    let clean = Done { is_clean: true };
    let table = [
        (0, 0, None, Announcing),
        (4_999, 0, None, Announcing),
        (5_000, 0, None, clean),
        (5_000, 1, None, Waiting),
        (5_000, 0, Some(4_500), Waiting),
        (5_499, 0, Some(4_500), Waiting),
        (5_500, 0, Some(4_500), clean),
        (24_999, 3, Some(24_000), Waiting),
        (25_000, 3, Some(24_999), Done { is_clean: false }),
        (25_000, 0, Some(24_999), clean),
    ];
    for (now, in_flight, last, expected) in table {
        let last = last.map(|millis| at(start, millis));
        assert_eq!(drain.phase(in_flight, last, at(start, now)), expected, "at {now} with {in_flight}");
    }
}

/// Waking only at the announced times is enough to leave at the first possible moment.
#[test]
fn nothing_changes_before_the_announced_time() {
    let start = some_instant();
    let drain = Drain::begin(DrainConfig::default(), start);
    for last in [None, Some(at(start, 3_000)), Some(at(start, 4_900))] {
        let mut now = start;
        let mut wakes = 0;
        while !matches!(drain.phase(0, last, now), Done { .. }) {
            let next = drain.next_deadline(0, last, now);
            assert!(next > now);
            let before = next - Duration::from_nanos(1);
            assert_eq!(drain.phase(0, last, before), drain.phase(0, last, now));
            now = next;
            wakes += 1;
        }
        assert!(wakes <= 2);
    }
}

#[test]
fn a_timeout_below_the_delay_wins() {
    let start = some_instant();
    let config = DrainConfig { timeout: Duration::from_secs(2), ..DrainConfig::default() };
    let drain = Drain::begin(config, start);
    assert_eq!(drain.next_deadline(1, None, start), at(start, 2_000));
    assert_eq!(drain.phase(1, None, at(start, 2_000)), Done { is_clean: false });
}

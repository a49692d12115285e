use crate::resilience::{recovery::*, some_instant};

fn ladder(rungs: u32, max_per_hour: u32) -> RecoveryLadder {
    let n = |value| NonZeroU32::new(value).expect("not zero");
    RecoveryLadder::new(RecoveryConfig {
        rungs: n(rungs),
        cooldown: Duration::from_secs(600),
        max_per_hour: n(max_per_hour),
    })
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn rungs_are_taken_one_at_a_time_with_a_cooldown_between() {
    let start = some_instant();
    let mut recovery = ladder(2, 10);
    assert_eq!(
        recovery.update(true, start),
        Some(RecoveryStep::TakeRung(0))
    );
    assert_eq!(recovery.update(true, at(start, 599)), None);
    assert_eq!(
        recovery.update(true, at(start, 600)),
        Some(RecoveryStep::TakeRung(1))
    );
    assert_eq!(
        recovery.update(true, at(start, 10_000)),
        None,
        "it stays on the last rung"
    );
}

#[test]
fn a_cleared_trigger_undoes_once_and_resets_the_ladder() {
    let start = some_instant();
    let mut recovery = ladder(3, 10);
    assert_eq!(recovery.update(false, start), None);
    assert_eq!(
        recovery.update(true, start),
        Some(RecoveryStep::TakeRung(0))
    );
    assert_eq!(
        recovery.update(false, at(start, 10)),
        Some(RecoveryStep::Undo(1))
    );
    assert_eq!(recovery.update(false, at(start, 11)), None);
    assert_eq!(
        recovery.update(true, at(start, 12)),
        None,
        "the cool-down outlives the episode"
    );
    assert_eq!(
        recovery.update(true, at(start, 600)),
        Some(RecoveryStep::TakeRung(0))
    );
}

#[test]
fn the_hourly_cap_holds_across_episodes_and_is_reported_once() {
    let start = some_instant();
    let mut recovery = ladder(1, 2);
    assert_eq!(
        recovery.update(true, start),
        Some(RecoveryStep::TakeRung(0))
    );
    assert_eq!(
        recovery.update(false, at(start, 1)),
        Some(RecoveryStep::Undo(1))
    );
    assert_eq!(
        recovery.update(true, at(start, 600)),
        Some(RecoveryStep::TakeRung(0))
    );
    assert_eq!(
        recovery.update(false, at(start, 601)),
        Some(RecoveryStep::Undo(1))
    );
    assert_eq!(
        recovery.update(true, at(start, 1_200)),
        Some(RecoveryStep::Capped)
    );
    assert_eq!(recovery.update(true, at(start, 3_599)), None);
    assert_eq!(
        recovery.update(true, at(start, 3_600)),
        Some(RecoveryStep::TakeRung(0)),
        "the first action is an hour old"
    );
}

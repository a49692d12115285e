use super::*;
use crate::resilience::some_instant;

fn recovery(rungs: u32, max_per_hour: u32) -> Recovery {
    let n = |value| NonZeroU32::new(value).expect("not zero");
    Recovery::new(RecoveryConfig {
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
    let mut recovery = recovery(2, 10);
    assert_eq!(recovery.observe(true, start), Some(Step::Act(0)));
    assert_eq!(recovery.observe(true, at(start, 599)), None);
    assert_eq!(recovery.observe(true, at(start, 600)), Some(Step::Act(1)));
    assert_eq!(
        recovery.observe(true, at(start, 10_000)),
        None,
        "it stays on the last rung"
    );
}

#[test]
fn trouble_that_is_over_is_undone_once_and_the_ladder_begins_anew() {
    let start = some_instant();
    let mut recovery = recovery(3, 10);
    assert_eq!(recovery.observe(false, start), None);
    assert_eq!(recovery.observe(true, start), Some(Step::Act(0)));
    assert_eq!(recovery.observe(false, at(start, 10)), Some(Step::Undo(1)));
    assert_eq!(recovery.observe(false, at(start, 11)), None);
    assert_eq!(
        recovery.observe(true, at(start, 12)),
        None,
        "the cool-down outlives the episode"
    );
    assert_eq!(recovery.observe(true, at(start, 600)), Some(Step::Act(0)));
}

#[test]
fn the_hourly_cap_holds_across_episodes_and_is_told_once() {
    let start = some_instant();
    let mut recovery = recovery(1, 2);
    assert_eq!(recovery.observe(true, start), Some(Step::Act(0)));
    assert_eq!(recovery.observe(false, at(start, 1)), Some(Step::Undo(1)));
    assert_eq!(recovery.observe(true, at(start, 600)), Some(Step::Act(0)));
    assert_eq!(recovery.observe(false, at(start, 601)), Some(Step::Undo(1)));
    assert_eq!(recovery.observe(true, at(start, 1_200)), Some(Step::Capped));
    assert_eq!(recovery.observe(true, at(start, 3_599)), None);
    assert_eq!(
        recovery.observe(true, at(start, 3_600)),
        Some(Step::Act(0)),
        "the first action is an hour old"
    );
}

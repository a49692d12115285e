use crate::resilience::memory_pressure::*;

#[test]
fn a_level_starts_at_its_share_and_ends_only_below_a_lower_one() {
    use MemoryLevel::{Critical, Elevated, High, Normal};
    for (current, used, expected) in [
        (Normal, 0, Normal),
        (Normal, 59, Normal),
        (Normal, 60, Elevated),
        (Elevated, 50, Elevated),
        (Elevated, 49, Normal),
        (Elevated, 75, High),
        (High, 70, High),
        (High, 69, Elevated),
        (High, 40, Normal),
        (Normal, 90, Critical),
        (Critical, 85, Critical),
        (Critical, 84, High),
        (Critical, 1_000, Critical),
    ] {
        assert_eq!(current.next(used, 100), expected, "{current:?} at {used} %");
    }
    assert_eq!(Normal.next(1, 0), Critical, "a budget of 0 is used up");
}

#[test]
fn the_least_important_class_is_rejected_first_and_the_most_important_never() {
    let rejected_from = |class| (0..=200).find(|used| rejects(class, *used, 100));
    assert_eq!(rejected_from(PriorityClass::Low), Some(90));
    assert_eq!(rejected_from(PriorityClass::Normal), Some(93));
    assert_eq!(rejected_from(PriorityClass::High), Some(96));
    assert_eq!(rejected_from(PriorityClass::Critical), None);
}

fn candidate(key: usize, waits_for: WaitKind, waited_millis: u64) -> CloseCandidate {
    CloseCandidate {
        key,
        waits_for,
        waited: Duration::from_millis(waited_millis),
        requests: 0,
    }
}

fn selected_keys(level: MemoryLevel, candidates: &[CloseCandidate]) -> Vec<usize> {
    let selected = select_closed(level, candidates);
    selected.iter().map(|candidate| candidate.key).collect()
}

#[test]
fn idle_connections_close_before_stalled_ones_and_stalled_ones_only_after_a_time() {
    let candidates = [
        candidate(1, WaitKind::Idle, 1_000),
        candidate(2, WaitKind::RequestHead, 499),
        candidate(3, WaitKind::Response, 500),
        candidate(4, WaitKind::Handshake, 99),
    ];
    assert_eq!(selected_keys(MemoryLevel::Normal, &candidates), [0; 0]);
    assert_eq!(selected_keys(MemoryLevel::Elevated, &candidates), [1]);
    assert_eq!(selected_keys(MemoryLevel::High, &candidates), [1, 3]);
    let without_oldest = [candidates[1], candidates[3]];
    assert_eq!(selected_keys(MemoryLevel::High, &without_oldest), [0; 0]);
    assert_eq!(selected_keys(MemoryLevel::Critical, &without_oldest), [2]);
}

#[test]
fn a_tenth_closes_at_once_with_the_most_requests_and_the_longest_wait_first() {
    let mut candidates: Vec<_> = (0..21)
        .map(|key| candidate(key, WaitKind::RequestBody, 1_000 + key as u64))
        .collect();
    candidates[5].requests = 100;
    assert_eq!(selected_keys(MemoryLevel::High, &candidates), [5, 20, 19]);
}

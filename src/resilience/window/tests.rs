use crate::resilience::{some_instant, window::*};

const SPAN: Duration = Duration::from_secs(10);

fn at(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

#[test]
fn a_count_expires_with_its_bucket() {
    let start = some_instant();
    let mut window = SlidingWindow::<u32>::new(SPAN, start);
    window.add(1, at(start, 500));
    assert_eq!(window.total(at(start, 9_999)), 1);
    assert_eq!(window.total(at(start, 10_000)), 0);
}

#[test]
fn a_gap_longer_than_the_window_clears_everything() {
    let start = some_instant();
    let mut window = SlidingWindow::<u32>::new(SPAN, start);
    for second in 0..10 {
        window.add(1, at(start, second * 1_000));
    }
    assert_eq!(window.last_total(), 10);
    assert_eq!(window.total(at(start, 3_600_000)), 0);
}

#[test]
fn a_time_before_the_newest_counts_in_the_newest() {
    let start = some_instant();
    let mut window = SlidingWindow::<u32>::new(SPAN, start);
    window.add(1, at(start, 5_000));
    window.add(1, at(start, 1_000));
    assert_eq!(window.total(at(start, 14_999)), 2);
    assert_eq!(window.total(at(start, 15_000)), 0);
}

/// Compares the total with a naive model that sums all additions at each reading.
#[test]
fn the_total_agrees_with_a_list_of_all_additions() {
    let start = some_instant();
    let mut window = SlidingWindow::<u32>::new(SPAN, start);
    let mut seen: Vec<(u64, u32)> = Vec::new();
    let mut millis = 0_u64;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..20_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        millis += (state >> 33) % 700;
        let value = u32::try_from((state >> 20) % 5).expect("small");
        window.add(value, at(start, millis));
        seen.push((millis / 1_000, value));
        let oldest = (millis / 1_000).saturating_sub(9);
        let expected: u32 = seen
            .iter()
            .rev()
            .take_while(|(bucket, _)| *bucket >= oldest)
            .map(|(_, value)| value)
            .sum();
        assert_eq!(
            window.total(at(start, millis)),
            expected,
            "after {millis} ms"
        );
    }
}

use crate::{resilience::some_instant, state::atomic_instant::*};

#[test]
fn a_time_before_at_or_after_the_start_is_loaded_as_it_was_stored() {
    let start = some_instant();
    let point = AtomicInstant::new(start, None);
    assert_eq!(point.load(), None);
    let times = [
        start - Duration::from_millis(7),
        start,
        start + Duration::from_millis(1),
        start + Duration::from_hours(24 * 365),
    ];
    for at in times {
        point.store(at);
        assert_eq!(point.load(), Some(at));
    }
}

#[test]
fn a_stored_time_is_rounded_towards_the_start() {
    let start = some_instant();
    let (below, above) = (Duration::from_micros(1_999), Duration::from_micros(2_000));
    for (distance, rounded_millis) in [(below, 1), (above, 2)] {
        let rounded = Duration::from_millis(rounded_millis);
        let after = AtomicInstant::new(start, Some(start + distance));
        assert_eq!(after.load(), Some(start + rounded));
        let before = AtomicInstant::new(start, Some(start - distance));
        assert_eq!(before.load(), Some(start - rounded));
    }
}

#[test]
fn a_change_returns_the_previous_time() {
    let start = some_instant();
    let later = start + Duration::from_secs(1);
    let point = AtomicInstant::new(start, None);
    assert_eq!(point.replace(start), None);
    assert_eq!(point.replace(later), Some(start));
    assert_eq!(point.take(), Some(later));
    assert_eq!((point.take(), point.load()), (None, None));
}

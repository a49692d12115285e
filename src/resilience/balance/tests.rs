use super::*;

struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / 4_294_967_296.0
    }
}

#[test]
fn of_two_draws_the_less_busy_wins() {
    let costs = [5.0, 1.0];
    for (first, second) in [(0.0, 0.0), (0.9, 0.9), (0.0, 0.9)] {
        assert_eq!(least_request(2, first, second, |index| Some(costs[index])), Some(1));
    }
}

#[test]
fn the_two_draws_are_never_the_same() {
    let mut dice = Dice(1);
    for _ in 0..10_000 {
        let (first, second) = (dice.roll(), dice.roll());
        let one = draw(7, first);
        let picked = least_request(7, first, second, |index| Some(if index == one { 2.0 } else { 1.0 }));
        assert_ne!(picked, Some(one));
    }
}

#[test]
fn an_endpoint_that_may_be_picked_is_found_if_there_is_one() {
    let mut dice = Dice(2);
    for only in 0..50 {
        let cost = |index: usize| (index == only).then_some(1.0);
        assert_eq!(least_request(50, dice.roll(), dice.roll(), cost), Some(only));
        assert_eq!(round_robin(50, only * 31, cost), Some(only));
    }
    assert_eq!(least_request(50, 0.3, 0.6, |_| None), None);
    assert_eq!(round_robin(50, 7, |_| None), None);
    assert_eq!((least_request(0, 0.1, 0.1, |_| Some(1.0)), round_robin(0, 0, |_| Some(1.0))), (None, None));
    assert_eq!((least_request(1, 0.9, 0.9, |_| Some(1.0)), least_request(1, 0.9, 0.9, |_| None)), (Some(0), None));
}

#[test]
fn round_robin_takes_turns() {
    let picks: Vec<_> = (0..6).filter_map(|turn| round_robin(3, turn, |_| Some(1.0))).collect();
    assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn even_endpoints_get_even_shares() {
    let mut dice = Dice(3);
    let mut hits = [0_u32; 5];
    for _ in 0..50_000 {
        hits[least_request(5, dice.roll(), dice.roll(), |_| Some(1.0)).expect("all may be picked")] += 1;
    }
    assert!(hits.iter().all(|hit| (9_400..=10_600).contains(hit)), "{hits:?}");
}

#[test]
fn panic_begins_below_the_threshold_and_needs_three() {
    let table = [(1, 2, 50, false), (1, 3, 50, true), (2, 4, 50, false), (1, 4, 50, true), (0, 3, 0, false), (0, 1, 50, false)];
    for (available, total, threshold, expected) in table {
        assert_eq!(is_panic(available, total, threshold), expected, "{available} of {total} at {threshold}");
    }
}

#[test]
fn weights_are_kept_and_zero_gets_nothing() {
    let weights = [0, 90, 0, 10];
    let mut dice = Dice(4);
    let mut hits = [0_u32; 4];
    for _ in 0..50_000 {
        hits[weighted(weights.iter().copied(), dice.roll()).expect("not all are zero")] += 1;
    }
    assert_eq!((hits[0], hits[2]), (0, 0));
    assert!((4_600..=5_400).contains(&hits[3]), "{hits:?}");
    assert_eq!(weighted([0, 0].into_iter(), 0.5), None);
    assert_eq!(weighted(weights.iter().copied(), 1.0), Some(3));
}

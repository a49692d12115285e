use crate::resilience::balance::*;

struct SeededRandom(u64);

impl SeededRandom {
    fn next_uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / 4_294_967_296.0
    }
}

/// Returns how often each of `weights` is picked in 60,000 picks.
fn hits(
    weights: &[f64],
    mut pick: impl FnMut(&mut dyn FnMut() -> f64) -> Option<usize>,
) -> Vec<u32> {
    let mut random_numbers = SeededRandom(1);
    let mut roll = || random_numbers.next_uniform();
    let mut hits = vec![0_u32; weights.len()];
    for _ in 0..60_000 {
        hits[pick(&mut roll).expect("one may be picked")] += 1;
    }
    hits
}

#[track_caller]
fn assert_shares(hits: &[u32], weights: &[f64]) {
    let (all, sum): (f64, f64) = (
        hits.iter().map(|hit| f64::from(*hit)).sum(),
        weights.iter().sum(),
    );
    for (hit, weight) in hits.iter().zip(weights) {
        let expected = all * weight / sum;
        assert!(
            (f64::from(*hit) - expected).abs() <= 300.0 + expected * 0.03,
            "{hits:?} for {weights:?}"
        );
    }
}

/// Returns equal and unequal weights, some far below the maximum of 1, and one heavy weight
/// among many.
fn weights() -> Vec<Vec<f64>> {
    let one_of = |light: usize| [vec![1.0], vec![0.01; light]].concat();
    let table = [
        &[1.0][..],
        &[1.0, 1.0, 1.0],
        &[1.0, 0.5, 0.25],
        &[1.0, 0.1],
        &[1.0, 0.0, 0.3, 0.3],
        &[0.01, 0.01],
        &[0.03, 0.01],
        &[0.1, 0.1, 0.1],
        &[0.2, 0.0, 0.1],
    ];
    [
        table.map(<[f64]>::to_vec).to_vec(),
        vec![one_of(9), one_of(20), one_of(99)],
    ]
    .concat()
}

#[test]
fn every_algorithm_picks_in_proportion_to_weight() {
    for weights in &weights() {
        assert_shares(
            &hits(weights, |random_numbers| {
                pick_random(weights.len(), |index| weights[index], &mut || {
                    random_numbers()
                })
            }),
            weights,
        );
        assert_shares(
            &hits(weights, |random_numbers| {
                pick_power_of_two(
                    weights.len(),
                    |index| weights[index],
                    |_| false,
                    |_| 1.0,
                    &mut || random_numbers(),
                )
            }),
            weights,
        );
        let mut turn = 0..;
        assert_shares(
            &hits(weights, |random_numbers| {
                pick_round_robin(
                    weights.len(),
                    |index| weights[index],
                    |_| false,
                    &mut || turn.next().unwrap_or_default(),
                    &mut || random_numbers(),
                )
            }),
            weights,
        );
    }
}

#[test]
fn power_of_two_picks_the_lower_cost() {
    let mut random_numbers = SeededRandom(9);
    for _ in 0..1_000 {
        assert_eq!(
            pick_power_of_two(
                2,
                |_| 1.0,
                |_| false,
                |index| [5.0, 1.0][index],
                &mut || random_numbers.next_uniform()
            ),
            Some(1)
        );
    }
}

#[test]
fn power_of_two_draws_two_different_candidates() {
    let mut random_numbers = SeededRandom(2);
    for len in [2, 3, 7, 100] {
        for _ in 0..2_000 {
            let one = pick_random(len, |_| 1.0, &mut || random_numbers.next_uniform())
                .expect("all may be picked");
            assert_ne!(
                pick_another(len, one, |_| 1.0, &mut || random_numbers.next_uniform()),
                Some(one)
            );
        }
    }
}

#[test]
fn the_only_available_candidate_is_found() {
    let mut random_numbers = SeededRandom(3);
    for len in [1_usize, 2, 5, 50, 1_000] {
        for only in (0..len).step_by(len.div_ceil(7)) {
            let weight = |index: usize| if index == only { 0.01 } else { 0.0 };
            assert_eq!(
                pick_random(len, weight, &mut || random_numbers.next_uniform()),
                Some(only)
            );
            assert_eq!(
                pick_power_of_two(len, weight, |_| false, |_| 1.0, &mut || random_numbers
                    .next_uniform()),
                Some(only)
            );
            assert_eq!(
                pick_round_robin(len, weight, |_| false, &mut || 77, &mut || random_numbers
                    .next_uniform()),
                Some(only)
            );
        }
        assert_eq!(
            pick_random(len, |_| 0.0, &mut || random_numbers.next_uniform()),
            None
        );
        assert_eq!(
            pick_power_of_two(len, |_| 0.0, |_| false, |_| 1.0, &mut || random_numbers
                .next_uniform()),
            None
        );
        assert_eq!(
            pick_round_robin(len, |_| 0.0, |_| false, &mut || 1, &mut || random_numbers
                .next_uniform()),
            None
        );
    }
    assert_eq!(
        (
            pick_random(0, |_| 1.0, &mut || 0.5),
            pick_power_of_two(0, |_| 1.0, |_| false, |_| 1.0, &mut || 0.5),
            pick_round_robin(0, |_| 1.0, |_| false, &mut || 5, &mut || 0.5)
        ),
        (None, None, None)
    );
}

#[test]
fn round_robin_spreads_turns_evenly() {
    let mut turn = 0..;
    let picks: Vec<_> = (0..6)
        .filter_map(|_| {
            pick_round_robin(
                3,
                |_| 1.0,
                |_| false,
                &mut || turn.next().unwrap_or_default(),
                &mut || 0.5,
            )
        })
        .collect();
    assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    // A light candidate is picked once in a fixed number of rounds, and never twice in a row.
    let mut turn = 0..;
    let picks: Vec<_> = (0..50)
        .filter_map(|_| {
            pick_round_robin(
                2,
                |index| [1.0, 0.25][index],
                |_| false,
                &mut || turn.next().unwrap_or_default(),
                &mut || 0.5,
            )
        })
        .collect();
    let light: Vec<usize> = picks
        .iter()
        .enumerate()
        .filter(|(_, picked)| **picked == 1)
        .map(|(at, _)| at)
        .collect();
    assert!(
        light.windows(2).all(|pair| pair[1] - pair[0] == 5),
        "{picks:?}"
    );
}

/// The deviation is bounded for any turn and any growth of the weight. A sum of weights over
/// all turns would deviate more and more.
#[test]
fn round_robin_follows_a_changing_weight() {
    for (from, growth) in [
        (0_usize, 1e-4),
        (30_000, 5e-5),
        (30_000, -5e-5),
        (5_000_000, 2e-4),
        (usize::MAX / 4, 1e-5),
    ] {
        let mut turn = from * 2;
        for window in 0..4 {
            let (mut due, mut got) = (0.0, 0.0);
            for round in 0..1_000 {
                let weight: f64 = 0.5 + growth * f64::from(window * 1_000 + round - 2_000);
                due += weight;
                got += f64::from(u8::from(is_picked_in_round_while_changing(
                    turn / 2,
                    1,
                    weight,
                )));
                turn += 2;
            }
            assert!(
                (got - due).abs() <= 8.0,
                "from {from}, {growth} a round, window {window}: {got} of {due}"
            );
        }
    }
}

#[test]
fn a_warming_up_candidate_gets_no_more_than_its_weight_even_if_idle() {
    let (mut random_numbers, mut hits) = (SeededRandom(11), [0_u32; 3]);
    for _ in 0..30_000 {
        let weight = |index: usize| [0.1, 1.0, 1.0][index];
        hits[pick_power_of_two(
            3,
            weight,
            |index| index == 0,
            |index| [0.0, 3.0, 2.0][index],
            &mut || random_numbers.next_uniform(),
        )
        .expect("all may be picked")] += 1;
    }
    assert!(
        (1_250..=1_571).contains(&hits[0]),
        "a tenth beside two whole ones: {hits:?}"
    );
}

#[test]
fn pick_weighted_follows_the_weights_and_never_picks_zero() {
    let weights = [0.0, 90.0, 0.0, 10.0];
    let mut random_numbers = SeededRandom(4);
    let mut hits = [0_u32; 4];
    for _ in 0..50_000 {
        hits[pick_weighted(weights.iter().copied(), random_numbers.next_uniform())
            .expect("not all are zero")] += 1;
    }
    assert_eq!((hits[0], hits[2]), (0, 0));
    assert!((4_600..=5_400).contains(&hits[3]), "{hits:?}");
    assert_eq!(pick_weighted([0.0, 0.0].into_iter(), 0.5), None);
    assert_eq!(pick_weighted(weights.iter().copied(), 1.0), Some(3));
}

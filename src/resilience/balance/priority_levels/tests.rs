use crate::resilience::balance::priority_levels::*;

fn load_percents(levels: &[(usize, usize)], threshold: u32) -> Vec<(u32, bool)> {
    let levels: Vec<PriorityLevel> = levels
        .iter()
        .map(|(available, total)| PriorityLevel {
            total: *total,
            available: *available,
        })
        .collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a percentage"
    )]
    let percent = |share: f64| (share * 100.0).round() as u32;
    distribute_load(&levels, threshold)
        .iter()
        .map(|share| (percent(share.load), share.is_in_panic))
        .collect()
}

#[test]
fn a_level_takes_all_load_until_its_availability_is_too_low() {
    // The table of priority levels in Envoy's documentation.
    let table = [
        (
            &[(100, 100), (100, 100)][..],
            vec![(100, false), (0, false)],
        ),
        (&[(72, 100), (100, 100)], vec![(100, false), (0, false)]),
        (&[(71, 100), (100, 100)], vec![(99, false), (1, false)]),
        (&[(50, 100), (100, 100)], vec![(70, false), (30, false)]),
        (&[(25, 100), (100, 100)], vec![(35, false), (65, false)]),
        (&[(0, 100), (100, 100)], vec![(0, false), (100, false)]),
        (&[(25, 100), (25, 100)], vec![(50, true), (50, true)]),
        (&[(0, 100), (60, 100)], vec![(0, true), (100, false)]),
        (&[(0, 2), (0, 2)], vec![(100, true), (0, false)]),
        (
            &[(20, 100), (20, 100), (60, 100)],
            vec![(28, false), (28, false), (44, false)],
        ),
    ];
    for (levels, expected) in table {
        assert_eq!(load_percents(levels, 50), expected, "{levels:?}");
    }
}

#[test]
fn panic_begins_below_the_threshold_and_needs_three_endpoints() {
    let table = [
        ((1, 2), 50, (100, false)),
        ((1, 3), 50, (100, true)),
        ((2, 4), 50, (100, false)),
        ((1, 4), 50, (100, true)),
        ((1, 4), 0, (100, false)),
        ((0, 3), 50, (100, true)),
        ((0, 3), 0, (0, false)),
        ((0, 1), 50, (0, false)),
        ((0, 0), 50, (0, false)),
    ];
    for (level, threshold, expected) in table {
        assert_eq!(
            load_percents(&[level], threshold),
            [expected],
            "{level:?} at {threshold}"
        );
    }
}

#[test]
fn loads_always_sum_to_one() {
    for available in 0..=6 {
        for other in 0..=6 {
            let levels = [
                PriorityLevel {
                    total: 6,
                    available,
                },
                PriorityLevel {
                    total: 6,
                    available: other,
                },
            ];
            let sum: f64 = distribute_load(&levels, 50)
                .iter()
                .map(|share| share.load)
                .sum();
            assert!((sum - 1.0).abs() < 1e-9, "{available} and {other}: {sum}");
        }
    }
}

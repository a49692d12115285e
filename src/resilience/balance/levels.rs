//! How much of the traffic each level of endpoints gets: priorities, and zones within them.
//!
//! Levels are ordered: the first takes everything as long as it can, and what it cannot take spills over to the next. How much a
//! level can take is what is available of it, times 1.4: a level of ten endpoints goes on taking everything with eight of them
//! (Envoy's overprovisioning factor, `priority.rst`). When all levels together cannot take everything, what they can take is
//! scaled up, and a level of which too little is available ignores health: spreading over all of it is kinder than crushing
//! the rest (Envoy's panic threshold, `panic_threshold.rst`). Below three endpoints in all there is nothing to spread over.

/// What a level can take more than its available share.
const OVERPROVISIONING_FACTOR: f64 = 1.4;

/// A level of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityLevel {
    /// Its endpoints.
    pub total: usize,
    /// Those that may be picked.
    pub available: usize,
}

/// What becomes of a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelLoad {
    /// Its share of the traffic, in `0.0..=1.0`.
    pub load: f64,
    /// Whether its health is ignored.
    pub is_in_panic: bool,
}

/// Shares the traffic out. A level whose health is ignored at `panic_threshold` 0 is none: then what is not available is not asked.
#[must_use]
pub fn distribute_load(levels: &[PriorityLevel], panic_threshold: u32) -> Vec<LevelLoad> {
    let health: Vec<f64> = levels
        .iter()
        .map(|level| (available_ratio(*level) * OVERPROVISIONING_FACTOR).min(1.0))
        .collect();
    let total: f64 = health.iter().sum();
    let count: usize = levels.iter().map(|level| level.total).sum();
    let is_panic = |level: &PriorityLevel| {
        let is_low =
            level.available as u128 * 100 < level.total as u128 * u128::from(panic_threshold);
        total < 1.0 && count >= 3 && is_low
    };
    if total <= 0.0 {
        // Nothing is available: whatever may ignore its health takes everything.
        let first = levels.iter().position(is_panic);
        return (0..levels.len())
            .map(|index| LevelLoad {
                load: if Some(index) == first { 1.0 } else { 0.0 },
                is_in_panic: Some(index) == first,
            })
            .collect();
    }
    let mut remaining_load: f64 = 1.0;
    let scaled = health.iter().map(|health| health / total.min(1.0));
    let shares = levels.iter().zip(scaled).map(|(level, can_take)| {
        let load = can_take.min(remaining_load);
        remaining_load -= load;
        LevelLoad {
            load,
            is_in_panic: is_panic(level),
        }
    });
    shares.collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of endpoints are far below 2^52"
)]
fn available_ratio(level: PriorityLevel) -> f64 {
    if level.total == 0 {
        0.0
    } else {
        level.available as f64 / level.total as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // The table of Envoy's documentation on priority levels.
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
}

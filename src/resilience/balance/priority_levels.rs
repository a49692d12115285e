//! The distribution of traffic over levels: priorities, and zones within a priority.
//!
//! Levels are ordered. The first level receives all traffic up to its capacity, and the rest
//! spills over to the next. The capacity of a level is its available share times 1.4, so a
//! level of ten endpoints still receives everything with eight of them (Envoy's
//! overprovisioning factor, `priority.rst`).
//!
//! If all levels together lack capacity, their capacities are scaled up. A level with too few
//! available endpoints is then in panic: its health is ignored. Spreading the load over all of
//! its endpoints is safer than overloading the rest (Envoy's panic threshold,
//! `panic_threshold.rst`). With fewer than three endpoints in total, there is no panic.
//!
//! The module does not select an endpoint within a level.

/// Capacity of a level, as a multiple of its available share.
const OVERPROVISIONING_FACTOR: f64 = 1.4;

/// Number of endpoints of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityLevel {
    /// Number of all endpoints of the level.
    pub total: usize,
    /// Number of endpoints of the level that may be picked.
    pub available: usize,
}

/// Traffic that one level receives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelLoad {
    /// Share of the traffic, in `0.0..=1.0`.
    pub load: f64,
    /// Whether the level ignores the health of its endpoints.
    pub is_in_panic: bool,
}

/// Distributes the traffic over the levels, in their order.
///
/// `panic_threshold` is the available percentage below which a level may be in panic; 0
/// disables panic. If nothing is available and no level is in panic, every share is 0.
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
        // Nothing is available, so the first level in panic receives all traffic.
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
mod tests;

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
mod tests;

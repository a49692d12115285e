//! Load balancing: the choice of an endpoint for the next attempt.
//!
//! The functions decide only by position, weight and cost. They do not know addresses, health
//! or latency, which the caller turns into weights and costs.
//!
//! Every algorithm picks candidates in proportion to their weight. [`pick_random`] and
//! [`pick_power_of_two`] use rejection sampling: they draw a number below `len` uniformly and
//! accept it with a probability equal to its weight. A weight may therefore change between two
//! picks, as during a warm-up, and no table is rebuilt. A candidate that may not be picked has
//! the weight 0. The number of draws does not depend on the number of candidates. Its mean is 1
//! divided by the mean weight.
//!
//! | algorithm | picks | source |
//! | --- | --- | --- |
//! | [`pick_random`] | by weight | - |
//! | [`pick_power_of_two`] | the cheaper of two that are drawn by weight | Mitzenmacher (1) |
//! | [`pick_round_robin`] | in turn; a lower weight skips turns evenly | gRPC A58 (2) |
//!
//! 1. "The Power of Two Choices in Randomized Load Balancing".
//! 2. "Static stride scheduling"; for a changing weight, Weyl's sequence.
//!
//! The caller defines the cost. Requests in flight per weight result in least request.
//! Multiplied by a latency, they result in peak EWMA ([`crate::resilience::peak_ewma`]). On
//! equal cost the first draw is picked, so idle endpoints are picked by weight.
//!
//! The functions do not allocate memory. After a bounded number of rejected draws,
//! [`pick_random`] and [`pick_round_robin`] draw once from the sum of all weights. An available
//! candidate is therefore always found, and its share follows its weight.

pub mod hash_ring;
pub mod priority_levels;

/// Maximum number of draws before the weights of all candidates are added up.
const MAX_DRAWS: usize = 16;

/// Maximum number of turns before one candidate is drawn by weight.
const MAX_ROUND_ROBIN_TURNS: usize = 64;

/// Maximum number of candidates for which a second one is drawn from the sum of all weights.
const EXACT_DRAW_MAX_CANDIDATES: usize = 4;

/// Picks a candidate at random by weight, or `None` if no weight is above 0.
///
/// `weight` is in `0.0..=1.0`: 1 for the heaviest candidate, and 0 for one that may not be
/// picked. `next_random` returns numbers that are uniform in `0..1`.
pub fn pick_random(
    len: usize,
    weight: impl Fn(usize) -> f64,
    next_random: &mut impl FnMut() -> f64,
) -> Option<usize> {
    if len == 0 {
        return None;
    }
    for _ in 0..MAX_DRAWS {
        let drawn = draw_index(len, next_random());
        if is_accepted(weight(drawn), next_random) {
            return Some(drawn);
        }
    }
    pick_weighted((0..len).map(&weight), next_random())
}

/// Draws two candidates by weight and picks the cheaper one.
///
/// A candidate that is warming up never replaces the first draw. However idle it is, it
/// receives no more than its weight.
pub fn pick_power_of_two(
    len: usize,
    weight: impl Fn(usize) -> f64,
    is_warming_up: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
    next_random: &mut impl FnMut() -> f64,
) -> Option<usize> {
    if len == 1 {
        return (weight(0) > 0.0).then_some(0);
    }
    let one = pick_random(len, &weight, next_random)?;
    let Some(other) = pick_another(len, one, weight, next_random) else {
        return Some(one);
    };
    Some(if cost(other) < cost(one) && !is_warming_up(other) {
        other
    } else {
        one
    })
}

/// Draws a second candidate by weight, or `None` if no other one is found.
fn pick_another(
    len: usize,
    one: usize,
    weight: impl Fn(usize) -> f64,
    next_random: &mut impl FnMut() -> f64,
) -> Option<usize> {
    for _ in 0..MAX_DRAWS {
        let drawn = (one + 1 + draw_index(len - 1, next_random())) % len;
        if is_accepted(weight(drawn), next_random) {
            return Some(drawn);
        }
    }
    let rest = (0..len).map(|index| if index == one { 0.0 } else { weight(index) });
    if len > EXACT_DRAW_MAX_CANDIDATES {
        None
    } else {
        pick_weighted(rest, next_random())
    }
}

fn is_accepted(weight: f64, next_random: &mut impl FnMut() -> f64) -> bool {
    weight >= 1.0 || (weight > 0.0 && next_random() < weight)
}

/// Picks candidates in turn; `turn` returns a number that increases with every call.
///
/// In `k` rounds a candidate of weight `w` is picked `k * w` times, with a deviation of at most
/// one. For a changing weight the deviation is a few picks.
pub fn pick_round_robin(
    len: usize,
    weight: impl Fn(usize) -> f64,
    is_changing: impl Fn(usize) -> bool,
    turn: &mut impl FnMut() -> usize,
    next_random: &mut impl FnMut() -> f64,
) -> Option<usize> {
    if len == 0 {
        return None;
    }
    for _ in 0..MAX_ROUND_ROBIN_TURNS {
        let turn = turn();
        let (round, index) = (turn / len, turn % len);
        let is_picked = match weight(index) {
            all if all >= 1.0 => true,
            none if none <= 0.0 => false,
            part if is_changing(index) => is_picked_in_round_while_changing(round, index, part),
            part => is_picked_in_round(round, index, part),
        };
        if is_picked {
            return Some(index);
        }
    }
    pick_weighted((0..len).map(&weight), next_random())
}

/// Returns whether a candidate is picked in a round.
///
/// It is picked when the sum of its weights passes a whole number. Each candidate starts at a
/// different offset, so that light ones are not all picked in the same round.
fn is_picked_in_round(round: usize, index: usize, weight: f64) -> bool {
    /// Number of rounds after which the sums restart, so that they stay exact.
    const CYCLE: usize = 1 << 20;
    /// The fraction of the golden ratio, which spreads the offsets evenly.
    const GOLDEN_RATIO_FRACTION: f64 = 0.618_033_988_749_895;
    let sum = |rounds: usize| {
        (to_f64(rounds) * weight + to_f64(index % CYCLE) * GOLDEN_RATIO_FRACTION % 1.0).floor()
    };
    let round = round % CYCLE;
    sum(round + 1) > sum(round)
}

/// Returns whether a candidate is picked in a round while its weight changes.
///
/// A sum over all rounds is then meaningless. Instead, the candidate is picked when a multiple
/// of the golden ratio, modulo 1, is below the weight. These multiples are spread evenly over
/// `0..1` (Knuth, "The Art of Computer Programming", section 6.4, theorem S).
fn is_picked_in_round_while_changing(round: usize, index: usize, weight: f64) -> bool {
    /// The fraction of the golden ratio, in units of 2^-64.
    const GOLDEN_RATIO_64: u64 = 0x9e37_79b9_7f4a_7c15;
    /// The fraction of the square root of two, in units of 2^-64.
    const SQRT_TWO_64: u64 = 0x6a09_e667_f3bc_c908;
    let position = (round as u64)
        .wrapping_mul(GOLDEN_RATIO_64)
        .wrapping_add((index as u64).wrapping_mul(SQRT_TWO_64));
    // The upper 53 bits convert exactly to a number in 0..1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let position = (position >> 11) as f64 / (1_u64 << 53) as f64;
    position < weight
}

/// Picks a position in proportion to its weight, or `None` if all weights are 0.
///
/// `random` is uniform in `0..1`.
pub fn pick_weighted(weights: impl Iterator<Item = f64> + Clone, random: f64) -> Option<usize> {
    let total: f64 = weights.clone().sum();
    let mut rest = random.clamp(0.0, 1.0) * total;
    let mut last = None;
    for (index, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0.0) {
        if rest < weight {
            return Some(index);
        }
        rest -= weight;
        last = Some(index);
    }
    last
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 <= random <= 1, so the product is at most len"
)]
fn draw_index(len: usize, random: f64) -> usize {
    ((random.clamp(0.0, 1.0) * to_f64(len)) as usize).min(len - 1)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn to_f64(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;

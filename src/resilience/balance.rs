//! Which endpoint gets the next attempt.
//!
//! Every algorithm draws candidates in proportion to their weight, by rejection: a number below `len` is drawn evenly and kept
//! with the probability that is its weight. So a weight may change from one pick to the next, as it does during a warm-up, and
//! nothing has to be built anew; a candidate that may not be picked has the weight 0. The cost does not depend on how many
//! candidates there are, only on how unlike their weights are: on average as many draws as the largest weight is above the mean.
//!
//! | algorithm | picks | source |
//! | --- | --- | --- |
//! | [`random`] | by weight | - |
//! | [`power_of_two`] | of two that are drawn by weight, the one with the lower cost | Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" |
//! | [`round_robin`] | in turn, a lighter one in fewer of the turns, spread evenly | gRPC A58, "static stride scheduling"; while a weight changes, Weyl's sequence |
//!
//! The cost is up to the caller: requests in flight per weight make it least request, a latency times them makes it peak EWMA
//! (`ewma`). On equal cost the first draw stands, so that idle endpoints are picked by weight.
//!
//! Nothing is allocated. When luck does not help, as with one candidate of thousands, the weights of all are added up and one is drawn
//! exactly: what may be picked is found, and its share stays what its weight says.

pub mod hash_ring;
pub mod priority_levels;

/// Draws before the weights of all candidates are added up.
const MAX_DRAWS: usize = 16;

/// Turns before it is left to a draw.
const MAX_ROUND_ROBIN_TURNS: usize = 64;

/// Up to so many candidates, adding them up is as cheap as drawing.
const EXACT_DRAW_MAX_CANDIDATES: usize = 4;

/// Draws by weight: `weight` is in `0.0..=1.0`, 1 for the heaviest and 0 for what may not be picked. `dice` gives numbers that
/// are uniform in `0..1`.
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

/// Draws two by weight, and picks the one that costs less. One that is held back never takes the place of the first: however idle it is, it gets no more
/// than its weight.
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

/// A second one, by weight too, if there is another.
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

/// Takes turns: `turn` counts on with every call. In `k` rounds a candidate of the weight `w` is picked `k * w` times, give or take
/// one; one whose weight is changing, give or take a few.
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

/// Whether a candidate is picked in a round: where the sum of its weights passes a whole number. Each begins at another place, so
/// that light ones do not all come in the same round.
fn is_picked_in_round(round: usize, index: usize, weight: f64) -> bool {
    /// Rounds after which the sums begin anew, so that they stay exact.
    const CYCLE: usize = 1 << 20;
    /// The golden ratio spreads the beginnings evenly.
    const GOLDEN_RATIO_FRACTION: f64 = 0.618_033_988_749_895;
    let sum = |rounds: usize| {
        (to_f64(rounds) * weight + to_f64(index % CYCLE) * GOLDEN_RATIO_FRACTION % 1.0).floor()
    };
    let round = round % CYCLE;
    sum(round + 1) > sum(round)
}

/// The same while the weight changes from round to round, when a sum over all rounds means nothing: where the multiples of the golden ratio, which
/// are spread over `0..1` as evenly as can be, fall below it (Knuth, "The Art of Computer Programming", section 6.4, theorem S).
fn is_picked_in_round_while_changing(round: usize, index: usize, weight: f64) -> bool {
    /// The golden ratio, less its whole part, in parts of 2^64.
    const GOLDEN_RATIO_64: u64 = 0x9e37_79b9_7f4a_7c15;
    /// The root of two, in the same.
    const SQRT_TWO_64: u64 = 0x6a09_e667_f3bc_c908;
    let position = (round as u64)
        .wrapping_mul(GOLDEN_RATIO_64)
        .wrapping_add((index as u64).wrapping_mul(SQRT_TWO_64));
    // The upper 53 bits are a number in 0..1 exactly.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let position = (position >> 11) as f64 / (1_u64 << 53) as f64;
    position < weight
}

/// Picks one of several weighted things; `random` is uniform in `0..1`. `None` if all weights are zero.
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

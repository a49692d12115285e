//! Which endpoint gets the next attempt.
//!
//! Least request by power of two choices: of two endpoints drawn at random, the one with less to do per weight wins. It keeps
//! clear of slow endpoints without the herding of "the least of all", and costs the same for three endpoints and ten thousand
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"). Round robin for those who want to count along.
//!
//! A candidate is a number below `len`; what it costs, and whether it may be picked, the caller says through `cost`. When the
//! two draws may not be picked, the next ones in line are looked at, so that a pick is found if there is one. Nothing is
//! allocated.

/// Picks by power of two choices: `cost` is what an endpoint has to do per weight, `None` if it may not be picked. `first` and
/// `second` are uniform in `0..1`.
pub fn least_request(len: usize, first: f64, second: f64, cost: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    match len {
        0 => return None,
        1 => return cost(0).map(|_| 0),
        _ => {}
    }
    let one = draw(len, first);
    let other = (one + 1 + draw(len - 1, second)) % len;
    match (cost(one), cost(other)) {
        (Some(a), Some(b)) => Some(if b < a { other } else { one }),
        (Some(_), None) => Some(one),
        (None, Some(_)) => Some(other),
        (None, None) => next_in_line(len, one, cost),
    }
}

/// Picks the candidate at `turn`, or the next in line that may be picked.
pub fn round_robin(len: usize, turn: usize, cost: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    if len == 0 {
        return None;
    }
    next_in_line(len, turn % len, cost)
}

/// Whether so few endpoints are available that health is better ignored: spreading over all is kinder than crushing the rest
/// (Envoy's panic threshold). Below three endpoints there is nothing to spread over.
#[must_use]
pub fn is_panic(available: usize, total: usize, threshold_percent: u32) -> bool {
    total >= 3 && available as u128 * 100 < total as u128 * u128::from(threshold_percent)
}

/// Picks one of several weighted things; `random` is uniform in `0..1`. `None` if all weights are zero.
pub fn weighted(weights: impl Iterator<Item = u32> + Clone, random: f64) -> Option<usize> {
    let total: f64 = weights.clone().map(f64::from).sum();
    let mut rest = random.clamp(0.0, 1.0) * total;
    let mut last = None;
    for (index, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0) {
        if rest < f64::from(weight) {
            return Some(index);
        }
        rest -= f64::from(weight);
        last = Some(index);
    }
    last
}

fn next_in_line(len: usize, start: usize, cost: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    (0..len).map(|step| (start + step) % len).find(|index| cost(*index).is_some())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "0 <= random < 1, so the product is below len")]
fn draw(len: usize, random: f64) -> usize {
    ((random.clamp(0.0, 1.0) * len as f64) as usize).min(len - 1)
}

#[cfg(test)]
mod tests;

//! Consistent hashing: the same key goes to the same endpoint, and when endpoints come or go few keys move.
//!
//! Each endpoint owns points on a ring, by its weight; a key belongs to the next point. A key whose endpoint may not be picked, or
//! is loaded above its bound, goes on to the next point, and comes back when that is over (Karger et al., "Consistent Hashing and
//! Random Trees"; Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads"). The points depend on an
//! endpoint's name alone, so that all instances of this proxy agree.

/// Points for an endpoint of average weight among few; among many, fewer: ten thousand have sixteen each.
const POINTS_PER_ENDPOINT: (usize, usize) = (16, 160);

/// Points in all that are aimed at.
const TARGET_TOTAL_POINTS: usize = 16 << 10;

/// The largest weight is worth so many times the points of the average.
const MAX_RELATIVE_WEIGHT: f64 = 16.0;

/// A ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashRing {
    /// Where a point is, and whose it is.
    points: Vec<(u64, u32)>,
}

impl HashRing {
    /// Makes a ring of endpoints, by number, name and weight.
    #[must_use]
    pub fn new(endpoints: &[(u32, String, f64)]) -> Self {
        let count = endpoints.len();
        let sum: f64 = endpoints.iter().map(|(.., weight)| weight).sum();
        if count == 0 || sum <= 0.0 {
            return Self::default();
        }
        let each =
            (TARGET_TOTAL_POINTS / count).clamp(POINTS_PER_ENDPOINT.0, POINTS_PER_ENDPOINT.1);
        let mut points = Vec::with_capacity(each * count);
        for (owner, name, weight) in endpoints {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let relative = (weight * count as f64 / sum).min(MAX_RELATIVE_WEIGHT);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "at most 16 times 160"
            )]
            let point_count = ((relative * each as f64).round() as u64).max(1);
            let seed = hash_key(name.as_bytes());
            points.extend((0..point_count).map(|point| (mix_bits(seed ^ mix_bits(point)), *owner)));
        }
        points.sort_unstable();
        Self { points }
    }

    /// The first endpoint on the way from a key's place that `accepts`.
    pub fn pick(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.points.partition_point(|(position, _)| *position < key);
        let mut refused = None;
        for (_, owner) in self.points[start..].iter().chain(&self.points[..start]) {
            // Neighbours often have the same owner, who need not be asked twice.
            if refused != Some(*owner) {
                if accepts(*owner as usize) {
                    return Some(*owner as usize);
                }
                refused = Some(*owner);
            }
        }
        None
    }
}

/// Whether an endpoint may take one more: at most `factor` times its share of all that is in flight, with the one that comes.
#[must_use]
pub fn is_within_load_bound(in_flight: u32, all_in_flight: u32, share: f64, factor: f64) -> bool {
    f64::from(in_flight) + 1.0 <= (factor * (f64::from(all_in_flight) + 1.0) * share).ceil()
}

/// The place of a key: FNV-1a, mixed, because its high bits alone are poor for short keys.
#[must_use]
pub fn hash_key(key: &[u8]) -> u64 {
    mix_bits(key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
fn mix_bits(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;

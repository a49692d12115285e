//! Consistent hashing with bounded loads.
//!
//! The ring decides which endpoint owns a key. The same key maps to the same endpoint, and a
//! change of the endpoints moves few keys. Each endpoint owns points on a ring in proportion to
//! its weight, and a key belongs to the next point. A key moves on to the next point if its
//! endpoint may not be picked or exceeds its load bound. It moves back afterwards. The sources
//! are Karger et al., "Consistent Hashing and Random Trees", and Mirrokni, Thorup and
//! Zadimoghaddam, "Consistent Hashing with Bounded Loads".
//!
//! The position of a point depends only on the name of its endpoint and on the number of the
//! point. All instances of the proxy therefore agree. The ring does not know health or load;
//! the caller passes a predicate.

/// Minimum and maximum number of points of an endpoint of average weight. The number falls with
/// the number of endpoints; with ten thousand it is 16.
const POINTS_PER_ENDPOINT: (usize, usize) = (16, 160);

/// Number of points that the whole ring aims at.
const TARGET_TOTAL_POINTS: usize = 16 << 10;

/// Upper bound of a weight, as a multiple of the average weight.
const MAX_RELATIVE_WEIGHT: f64 = 16.0;

/// A ring of points, each owned by one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashRing {
    /// Position and owner of each point, in ascending order.
    points: Vec<(u64, u32)>,
}

impl HashRing {
    /// Creates a ring from the number, name and weight of each endpoint.
    ///
    /// The ring is empty if there are no endpoints or if all weights are 0.
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

    /// Returns the first endpoint from the position of `key` on that `accepts` allows.
    pub fn pick(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.points.partition_point(|(position, _)| *position < key);
        let mut refused = None;
        for (_, owner) in self.points[start..].iter().chain(&self.points[..start]) {
            // Neighbouring points often have the same owner, so one that was just rejected is
            // not tested again.
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

/// Returns whether an endpoint may receive one more request.
///
/// The bound is `factor` times its `share` of all requests in flight, including the new one,
/// rounded up.
#[must_use]
pub fn is_within_load_bound(in_flight: u32, all_in_flight: u32, share: f64, factor: f64) -> bool {
    f64::from(in_flight) + 1.0 <= (factor * (f64::from(all_in_flight) + 1.0) * share).ceil()
}

/// Returns the position of a key: FNV-1a, then mixed, because its high bits are poor for short
/// keys.
#[must_use]
pub fn hash_key(key: &[u8]) -> u64 {
    mix_bits(key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// Applies the finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast Splittable Pseudorandom
/// Number Generators").
fn mix_bits(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;

//! Comparison of points in time, and of durations, that may be absent.

/// Returns the smallest of several optional values, or `None` if all are absent.
#[must_use]
pub fn earliest<T: Ord, const N: usize>(values: [Option<T>; N]) -> Option<T> {
    values.into_iter().flatten().min()
}

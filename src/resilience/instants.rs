//! Comparison of optional values, such as deadlines that may be absent.
//!
//! The module does not know what the values mean.

/// Returns the smallest of several optional values, or `None` if all are absent.
#[must_use]
pub fn earliest<T: Ord, const N: usize>(values: [Option<T>; N]) -> Option<T> {
    values.into_iter().flatten().min()
}

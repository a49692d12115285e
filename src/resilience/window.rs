//! Exact counts over a sliding time window.
//!
//! A window is a ring of buckets with a running total. An addition costs one sum, and an
//! expired bucket is subtracted as a whole. A reading therefore costs the same for ten calls
//! and for ten million. Exact counts are used instead of decaying averages, because an average
//! hides a short burst, and a breaker must detect a burst (linkerd2-proxy, `success_rate.rs`).
//!
//! The window does not know what it counts.
//!
//! Limits:
//!
//! - The resolution is one bucket: a count expires up to one bucket early, and never late.
//! - A time before the newest known time counts in the newest bucket.

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

/// Number of buckets of a window.
const BUCKETS: usize = 10;

/// A sliding window over values of `T` that can be added and subtracted.
#[derive(Debug, Clone)]
pub struct SlidingWindow<T> {
    bucket_width: Duration,
    origin: Instant,
    /// Number of the newest bucket, counted from `origin`.
    head: u64,
    buckets: [T; BUCKETS],
    total: T,
}

impl<T: Copy + Default + AddAssign + SubAssign> SlidingWindow<T> {
    /// Creates an empty window over `span`; a span below ten nanoseconds counts as ten.
    #[must_use]
    pub fn new(span: Duration, now: Instant) -> Self {
        let bucket_width = (span / 10).max(Duration::from_nanos(1));
        Self {
            bucket_width,
            origin: now,
            head: 0,
            buckets: [T::default(); BUCKETS],
            total: T::default(),
        }
    }

    /// Adds a value to the bucket of `now`.
    pub fn add(&mut self, value: T, now: Instant) {
        self.advance(now);
        self.buckets[Self::slot(self.head)] += value;
        self.total += value;
    }

    /// Returns the sum over the window that ends at `now`.
    pub fn total(&mut self, now: Instant) -> T {
        self.advance(now);
        self.total
    }

    /// Returns the sum as of the latest call of [`SlidingWindow::add`] or
    /// [`SlidingWindow::total`].
    #[must_use]
    pub fn last_total(&self) -> T {
        self.total
    }

    /// Removes all counts and restarts the window at `now`.
    pub fn clear(&mut self, now: Instant) {
        self.origin = now;
        self.head = 0;
        self.buckets = [T::default(); BUCKETS];
        self.total = T::default();
    }

    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.origin).as_nanos();
        let bucket = u64::try_from(elapsed / self.bucket_width.as_nanos()).unwrap_or(u64::MAX);
        if bucket <= self.head {
            return;
        }
        if bucket - self.head >= BUCKETS as u64 {
            self.buckets = [T::default(); BUCKETS];
            self.total = T::default();
            self.head = bucket;
            return;
        }
        while self.head < bucket {
            self.head += 1;
            let expired = std::mem::take(&mut self.buckets[Self::slot(self.head)]);
            self.total -= expired;
        }
    }

    fn slot(bucket: u64) -> usize {
        usize::try_from(bucket % BUCKETS as u64).expect("a remainder of ten fits")
    }
}

#[cfg(test)]
mod tests;

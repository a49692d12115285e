//! Counts over the recent past, exactly.
//!
//! A ring of buckets and a running total: adding is one addition, and leaving the window subtracts a whole bucket, so a
//! reading costs the same whether the window saw ten calls or ten million. Exact counts are chosen over decaying averages
//! because an average hides a tight burst, and a burst is what a breaker must see (linkerd2-proxy, `success_rate.rs`).
//!
//! Limits: the resolution is one bucket, so that a count leaves the window up to one bucket early, never late. A time before
//! the newest seen is counted in the newest bucket.

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

/// How many buckets a window is divided into.
const BUCKETS: usize = 10;

/// A sliding window of `T`, which is anything that can be added up.
#[derive(Debug, Clone)]
pub struct SlidingWindow<T> {
    bucket_width: Duration,
    origin: Instant,
    /// The number of the bucket, counted from `origin`, that `now` was last seen in.
    head: u64,
    buckets: [T; BUCKETS],
    total: T,
}

impl<T: Copy + Default + AddAssign + SubAssign> SlidingWindow<T> {
    /// Makes an empty window over `span`; a span of less than ten nanoseconds is taken as ten.
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

    /// Adds to the present.
    pub fn add(&mut self, value: T, now: Instant) {
        self.advance(now);
        self.buckets[Self::slot(self.head)] += value;
        self.total += value;
    }

    /// The sum over the window that ends at `now`.
    pub fn total(&mut self, now: Instant) -> T {
        self.advance(now);
        self.total
    }

    /// The sum when something was last added or asked for.
    #[must_use]
    pub fn last_total(&self) -> T {
        self.total
    }

    /// Forgets everything.
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

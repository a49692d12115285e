//! A point in time that is read and written without a lock.
//!
//! `Instant` has no atomic form. This module therefore stores its distance from a fixed start,
//! in whole milliseconds. It does not read the clock, and does not know what happens at that
//! time.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

/// Stored number that stands for no point in time.
const NONE: i64 = i64::MIN;

/// Point in time, or none, with a resolution of one millisecond.
///
/// A stored time is rounded towards the start. A reader of a time also sees everything that its
/// writer wrote before it.
#[derive(Debug)]
pub(in crate::state) struct AtomicInstant {
    start: Instant,
    /// Milliseconds after `start`, negative before it, or [`NONE`].
    millis: AtomicI64,
}

impl AtomicInstant {
    /// Creates a point in time with an initial value. It is stored relative to `start`.
    pub(in crate::state) fn new(start: Instant, initial: Option<Instant>) -> Self {
        let point = Self {
            start,
            millis: AtomicI64::new(NONE),
        };
        if let Some(initial) = initial {
            point.store(initial);
        }
        point
    }

    /// Returns the stored time; `None` if there is none.
    pub(in crate::state) fn load(&self) -> Option<Instant> {
        self.instant_at(self.millis.load(Ordering::Acquire))
    }

    /// Stores a time, rounded towards the start by less than a millisecond.
    pub(in crate::state) fn store(&self, at: Instant) {
        self.millis.store(self.millis_at(at), Ordering::Release);
    }

    /// Stores a time, and returns the previous one.
    pub(in crate::state) fn replace(&self, at: Instant) -> Option<Instant> {
        self.instant_at(self.millis.swap(self.millis_at(at), Ordering::AcqRel))
    }

    /// Removes the stored time, and returns it.
    pub(in crate::state) fn take(&self) -> Option<Instant> {
        self.instant_at(self.millis.swap(NONE, Ordering::AcqRel))
    }

    fn millis_at(&self, at: Instant) -> i64 {
        let to_number =
            |distance: Duration| i64::try_from(distance.as_millis()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.start) {
            Some(after) => to_number(after),
            None => -to_number(self.start.saturating_duration_since(at)),
        }
    }

    fn instant_at(&self, millis: i64) -> Option<Instant> {
        if millis == NONE {
            return None;
        }
        let distance = Duration::from_millis(millis.unsigned_abs());
        let at = if millis < 0 {
            self.start.checked_sub(distance)
        } else {
            self.start.checked_add(distance)
        };
        // The distance was measured to an existing instant, so this one exists, too.
        Some(at.unwrap_or(self.start))
    }
}

#[cfg(test)]
mod tests;

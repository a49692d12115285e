//! Calls: how they end, and how many ended how.

use std::{
    ops::{AddAssign, SubAssign},
    time::Duration,
};

use crate::resilience::ratio::Ratio;

/// How a call ended, as far as a breaker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The backend processed the call, or rejected it because of an error of the client.
    Success,
    /// The backend failed to process the call.
    Failure,
    /// The backend works, and rejected the call because of an overload.
    Throttled,
    /// The call has no result: the client left, or the call never reached the backend.
    ///
    /// It is not counted, and its permit is returned.
    Cancelled,
}

/// Speed of a call, compared with the slow-call threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// The call took at most the threshold.
    Fast,
    /// The call took longer than the threshold.
    Slow,
}

impl Speed {
    /// Compares a duration with the threshold; a call that takes exactly the threshold is fast.
    #[must_use]
    pub fn from_duration(duration: Duration, threshold: Duration) -> Self {
        if duration > threshold {
            Self::Slow
        } else {
            Self::Fast
        }
    }
}

/// Result of one call: how it ended, and at which speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallResult {
    /// How the call ended.
    pub outcome: CallOutcome,
    /// Speed of the call. It has no meaning if the call was cancelled.
    pub speed: Speed,
}

/// Number of calls by result and by speed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Calls that succeeded, fast or slow.
    pub successes: u32,
    /// Calls that failed or were throttled, fast or slow.
    pub failures: u32,
    /// Calls that took longer than the slow-call threshold, whatever their result.
    pub slow_calls: u32,
}

impl CallCounts {
    /// Returns the counts of one call, or `None` if it was cancelled.
    pub(super) fn from_call(call: CallResult) -> Option<Self> {
        let (successes, failures) = match call.outcome {
            CallOutcome::Success => (1, 0),
            CallOutcome::Failure | CallOutcome::Throttled => (0, 1),
            CallOutcome::Cancelled => return None,
        };
        Some(Self {
            successes,
            failures,
            slow_calls: u32::from(call.speed == Speed::Slow),
        })
    }

    /// Returns the number of all counted calls.
    #[must_use]
    pub fn total(self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    /// Returns the share of calls that failed or were throttled.
    #[must_use]
    pub fn failure_rate(self) -> Ratio {
        Ratio::from_fraction(self.failures, self.total())
    }

    /// Returns the share of calls that were slow.
    #[must_use]
    pub fn slow_call_rate(self) -> Ratio {
        Ratio::from_fraction(self.slow_calls, self.total())
    }
}

impl AddAssign for CallCounts {
    fn add_assign(&mut self, other: Self) {
        self.successes = self.successes.saturating_add(other.successes);
        self.failures = self.failures.saturating_add(other.failures);
        self.slow_calls = self.slow_calls.saturating_add(other.slow_calls);
    }
}

impl SubAssign for CallCounts {
    fn sub_assign(&mut self, other: Self) {
        self.successes = self.successes.saturating_sub(other.successes);
        self.failures = self.failures.saturating_sub(other.failures);
        self.slow_calls = self.slow_calls.saturating_sub(other.slow_calls);
    }
}

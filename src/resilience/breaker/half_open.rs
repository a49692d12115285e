//! The verdict of a half-open round.
//!
//! The rates of a round are shares of its full number of probes, not of the probes that have
//! ended. The verdict therefore does not depend on the order of the results. A round fails as
//! soon as a threshold is reached. It passes when all probes have ended without reaching one.

use std::num::NonZeroU32;

use crate::resilience::{
    breaker::{
        call::{CallCounts, CallResult},
        config::BreakerConfig,
    },
    ratio::Ratio,
};

/// Probes of one half-open round.
#[derive(Debug)]
pub(super) struct HalfOpenProbes {
    max_calls: u32,
    outstanding: u32,
    counts: CallCounts,
}

/// Verdict of a round, based on the results so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeVerdict {
    Undecided,
    Passed,
    Failed,
}

impl HalfOpenProbes {
    pub(super) fn new(size: NonZeroU32) -> Self {
        Self {
            max_calls: size.get(),
            outstanding: 0,
            counts: CallCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> CallCounts {
        self.counts
    }

    /// Starts one more probe if the round is not full, and returns whether it did.
    pub(super) fn try_start(&mut self) -> bool {
        let has_room = self.outstanding + self.counts.total() < self.max_calls;
        self.outstanding += u32::from(has_room);
        has_room
    }

    pub(super) fn settle(&mut self, config: &BreakerConfig, call: CallResult) -> ProbeVerdict {
        self.outstanding = self.outstanding.saturating_sub(1);
        let Some(counts) = CallCounts::from_call(call) else {
            return ProbeVerdict::Undecided;
        };
        self.counts += counts;
        if self.has_failed(config) {
            ProbeVerdict::Failed
        } else if self.counts.total() >= self.max_calls {
            ProbeVerdict::Passed
        } else {
            ProbeVerdict::Undecided
        }
    }

    /// Returns whether the results so far reach a threshold.
    ///
    /// Without a failure-rate threshold, one failed probe fails the round.
    fn has_failed(&self, config: &BreakerConfig) -> bool {
        let thresholds = config.thresholds();
        let failed = match thresholds.failure_rate {
            Some(limit) => Ratio::from_fraction(self.counts.failures, self.max_calls) >= limit,
            None => self.counts.failures > 0,
        };
        failed
            || thresholds.slow_call_rate.is_some_and(|limit| {
                Ratio::from_fraction(self.counts.slow_calls, self.max_calls) >= limit
            })
    }
}

#[cfg(test)]
mod tests;

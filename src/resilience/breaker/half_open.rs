//! The verdict over a half-open round.
//!
//! The rates of a round are counted over its full number of probes, not over those that have ended: so the verdict does not
//! depend on which probe returns first, and it falls as soon as no outstanding probe could change it.

use std::num::NonZeroU32;

use crate::resilience::breaker::{BreakerConfig, CallCounts, CallOutcome, Ratio};

/// The probes of one round.
#[derive(Debug)]
pub(super) struct HalfOpenProbes {
    max_calls: u32,
    outstanding: u32,
    counts: CallCounts,
}

/// What the results so far say.
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

    /// Starts one more probe if the round has room.
    pub(super) fn try_start(&mut self) -> bool {
        let has_room = self.outstanding + self.counts.total() < self.max_calls;
        self.outstanding += u32::from(has_room);
        has_room
    }

    pub(super) fn settle(
        &mut self,
        config: &BreakerConfig,
        outcome: CallOutcome,
        is_slow: bool,
    ) -> ProbeVerdict {
        self.outstanding = self.outstanding.saturating_sub(1);
        let is_slow = u32::from(is_slow);
        match outcome {
            CallOutcome::Cancelled => return ProbeVerdict::Undecided,
            CallOutcome::Success => {
                self.counts += CallCounts {
                    successes: 1,
                    slow_calls: is_slow,
                    ..CallCounts::default()
                }
            }
            CallOutcome::Failure | CallOutcome::Throttled => {
                self.counts += CallCounts {
                    failures: 1,
                    slow_calls: is_slow,
                    ..CallCounts::default()
                }
            }
        }
        if self.has_failed(config) {
            ProbeVerdict::Failed
        } else if self.counts.total() >= self.max_calls {
            ProbeVerdict::Passed
        } else {
            ProbeVerdict::Undecided
        }
    }

    /// Without a failure rate, which is a breaker of consecutive failures only, any failed probe is one too many.
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

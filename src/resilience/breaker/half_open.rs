//! The verdict over a half-open round.
//!
//! The rates of a round are counted over its full number of probes, not over those that have ended: so the verdict does not
//! depend on which probe returns first, and it falls as soon as no outstanding probe could change it.

use std::num::NonZeroU32;

use super::{BreakerConfig, Counts, Outcome, Ratio};

/// The probes of one round.
#[derive(Debug)]
pub(super) struct Probes {
    size: u32,
    outstanding: u32,
    counts: Counts,
}

/// What the results so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Undecided,
    Passed,
    Failed,
}

impl Probes {
    pub(super) fn new(size: NonZeroU32) -> Self {
        Self {
            size: size.get(),
            outstanding: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Starts one more probe if the round has room.
    pub(super) fn try_start(&mut self) -> bool {
        let room = self.outstanding + self.counts.total() < self.size;
        self.outstanding += u32::from(room);
        room
    }

    pub(super) fn settle(
        &mut self,
        config: &BreakerConfig,
        outcome: Outcome,
        slow: bool,
    ) -> Verdict {
        self.outstanding = self.outstanding.saturating_sub(1);
        let slow = u32::from(slow);
        match outcome {
            Outcome::Cancelled => return Verdict::Undecided,
            Outcome::Success => {
                self.counts += Counts {
                    successes: 1,
                    slow,
                    ..Counts::default()
                }
            }
            Outcome::Failure | Outcome::Throttled => {
                self.counts += Counts {
                    failures: 1,
                    slow,
                    ..Counts::default()
                }
            }
        }
        if self.has_failed(config) {
            Verdict::Failed
        } else if self.counts.total() >= self.size {
            Verdict::Passed
        } else {
            Verdict::Undecided
        }
    }

    /// Without a failure rate, which is a breaker of consecutive failures only, any failed probe is one too many.
    fn has_failed(&self, config: &BreakerConfig) -> bool {
        let thresholds = config.thresholds();
        let failed = match thresholds.failure_rate {
            Some(limit) => Ratio::of(self.counts.failures, self.size) >= limit,
            None => self.counts.failures > 0,
        };
        failed
            || thresholds
                .slow_call_rate
                .is_some_and(|limit| Ratio::of(self.counts.slow, self.size) >= limit)
    }
}

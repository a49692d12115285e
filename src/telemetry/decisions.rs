//! Why the last requests got what they got: every step that was decided about one, with the numbers behind it.
//!
//! A request that simply passed is not kept: nothing was decided about it. So the ring holds what somebody may ask about, and a request without
//! trouble costs nothing here.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::reason::Reason;

/// Requests that are remembered.
const REMEMBERED: usize = 2_048;

/// Steps of one request; those after are not kept.
pub const MAX_STEPS: usize = 32;

/// A request, and what was decided about it.
#[derive(Debug)]
pub struct Decided {
    /// When it had ended.
    pub at: SystemTime,
    /// Its id.
    pub request_id: String,
    /// Its trace, if it is of one.
    pub trace_id: String,
    /// Its method.
    pub method: String,
    /// Whom it was for.
    pub host: String,
    /// Its path, without a query.
    pub path: String,
    /// The route that took it.
    pub route: String,
    /// The backend that it was for.
    pub backend: String,
    /// The endpoint that was asked last.
    pub endpoint: String,
    /// What it was answered with.
    pub status: u16,
    /// Why, if the answer was made here: `TOKEN[:NAME]`.
    pub reason: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// From its head to the end of its answer.
    pub took: Duration,
    /// What was decided, and when after its head.
    pub steps: Vec<(Duration, Step)>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It was refused, or would have been in shadow mode.
    Refused {
        /// Why.
        reason: Reason,
        /// Who refuses.
        by: Arc<str>,
        /// The numbers.
        numbers: String,
        /// Whether shadow mode let it pass.
        is_shadow: bool,
    },
    /// An attempt failed.
    Failed {
        /// Counted from 1.
        attempt: u32,
        /// Where.
        endpoint: Arc<str>,
        /// How.
        how: String,
        /// After how long.
        took: Duration,
    },
    /// It was not looked at, because the endpoint is leaving or new; another is asked.
    Repicked {
        /// Counted from 1.
        attempt: u32,
        /// Where.
        endpoint: Arc<str>,
        /// How it said so.
        how: String,
    },
    /// It is tried again.
    Retried {
        /// After this wait.
        wait: Duration,
        /// Whether nothing had reached the backend.
        is_transparent: bool,
        /// Retries that are left in the budget.
        left: u32,
    },
    /// It is not tried again.
    NotRetried {
        /// Why.
        why: &'static str,
        /// The numbers.
        numbers: String,
    },
    /// Another endpoint is asked as well.
    Hedged {
        /// Counted from 1.
        attempt: u32,
        /// Where.
        endpoint: Arc<str>,
        /// How late is late.
        delay: Duration,
    },
    /// One that was asked later answered first.
    HedgeWon {
        /// Which.
        endpoint: Arc<str>,
    },
    /// Something else is answered.
    Degraded {
        /// What.
        with: String,
        /// Whether it only would be.
        is_shadow: bool,
    },
    /// It was kept waiting on purpose.
    Delayed {
        /// For so long.
        by: Duration,
    },
}

impl Step {
    /// The kind, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused {
                is_shadow: true, ..
            } => "would_refuse",
            Self::Refused { .. } => "refused",
            Self::Failed { .. } => "attempt_failed",
            Self::Repicked { .. } => "repicked",
            Self::Retried { .. } => "retried",
            Self::NotRetried { .. } => "not_retried",
            Self::Hedged { .. } => "hedged",
            Self::HedgeWon { .. } => "hedge_won",
            Self::Degraded {
                is_shadow: true, ..
            } => "would_degrade",
            Self::Degraded { .. } => "degraded",
            Self::Delayed { .. } => "delayed",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused {
                reason,
                by,
                numbers,
                is_shadow,
            } => {
                let is = if *is_shadow {
                    "would have been refused"
                } else {
                    "refused"
                };
                write!(f, "{is}: {}", reason.token())?;
                if !by.is_empty() {
                    write!(f, " by {by}")?;
                }
                if numbers.is_empty() {
                    Ok(())
                } else {
                    write!(f, ": {numbers}")
                }
            }
            Self::Failed {
                attempt,
                endpoint,
                how,
                took,
            } => write!(
                f,
                "attempt {attempt} at {endpoint} failed after {took:.1?}: {how}"
            ),
            Self::Repicked {
                attempt,
                endpoint,
                how,
            } => write!(
                f,
                "attempt {attempt} was not looked at by {endpoint}, which is leaving or new ({how}); another is asked"
            ),
            Self::Retried {
                wait,
                is_transparent,
                left,
            } => {
                let why = if *is_transparent {
                    "nothing had reached the backend"
                } else {
                    "the policy wants it tried again"
                };
                write!(
                    f,
                    "tried again after {wait:.1?}: {why}, {left} retries are left in the budget"
                )
            }
            Self::NotRetried { why, numbers } if numbers.is_empty() => {
                write!(f, "not tried again: {why}")
            }
            Self::NotRetried { why, numbers } => write!(f, "not tried again: {why}: {numbers}"),
            Self::Hedged {
                attempt,
                endpoint,
                delay,
            } => write!(
                f,
                "attempt {attempt} at {endpoint} besides: no answer within {delay:.1?}, or one that failed"
            ),
            Self::HedgeWon { endpoint } => write!(f, "{endpoint} answered before the others"),
            Self::Degraded {
                with,
                is_shadow: false,
            } => write!(f, "answered instead: {with}"),
            Self::Degraded { with, .. } => write!(f, "would have been answered instead: {with}"),
            Self::Delayed { by } => write!(f, "kept waiting on purpose for {by:.1?}"),
        }
    }
}

/// The last requests about which something was decided.
#[derive(Debug, Default)]
pub struct Decisions {
    /// Guards a push or a search.
    ring: Mutex<VecDeque<Arc<Decided>>>,
}

impl Decisions {
    /// Remembers a request, instead of the oldest one if there are as many as may be.
    pub fn remember(&self, decided: Decided) {
        let decided = Arc::new(decided);
        let mut ring = self.lock();
        let oldest = if ring.len() >= REMEMBERED {
            ring.pop_front()
        } else {
            None
        };
        ring.push_back(decided);
        drop(ring);
        // Freed without the lock.
        drop(oldest);
    }

    /// Those that `wanted` holds for, the last first, so many at most.
    #[must_use]
    pub fn find(&self, wanted: impl Fn(&Decided) -> bool, most: usize) -> Vec<Arc<Decided>> {
        self.lock()
            .iter()
            .rev()
            .filter(|decided| wanted(decided))
            .take(most)
            .cloned()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Decided>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(id: usize) -> Decided {
        let none = String::new;
        Decided {
            at: SystemTime::UNIX_EPOCH,
            request_id: id.to_string(),
            trace_id: none(),
            method: none(),
            host: none(),
            path: none(),
            route: none(),
            backend: none(),
            endpoint: none(),
            status: 503,
            reason: none(),
            attempts: 0,
            took: Duration::ZERO,
            steps: Vec::new(),
        }
    }

    #[test]
    fn the_last_are_remembered_and_no_more() {
        let decisions = Decisions::default();
        (0..REMEMBERED + 10).for_each(|id| decisions.remember(decided(id)));
        let all = decisions.find(|_| true, usize::MAX);
        assert_eq!(
            (all.len(), &*all[0].request_id),
            (REMEMBERED, &*(REMEMBERED + 9).to_string())
        );
        assert!(
            decisions
                .find(|decided| decided.request_id == "9", 1)
                .is_empty(),
            "it has made room"
        );
        assert_eq!(
            decisions
                .find(|decided| decided.request_id == "10", 1)
                .len(),
            1
        );
    }

    #[test]
    fn steps_are_told_in_plain_words() {
        let refused = |is_shadow| Step::Refused {
            reason: Reason::BreakerOpen,
            by: "app".into(),
            numbers: "5 of 5 calls failed".into(),
            is_shadow,
        };
        assert_eq!(
            refused(false).to_string(),
            "refused: breaker_open by app: 5 of 5 calls failed"
        );
        assert_eq!(
            refused(true).to_string(),
            "would have been refused: breaker_open by app: 5 of 5 calls failed"
        );
        let failed = Step::Failed {
            attempt: 1,
            endpoint: "10.0.0.7:80".into(),
            how: "503".into(),
            took: Duration::from_millis(12),
        };
        assert_eq!(
            failed.to_string(),
            "attempt 1 at 10.0.0.7:80 failed after 12.0ms: 503"
        );
        let retried = Step::Retried {
            wait: Duration::from_millis(25),
            is_transparent: false,
            left: 9,
        };
        assert_eq!(
            retried.to_string(),
            "tried again after 25.0ms: the policy wants it tried again, 9 retries are left in the budget"
        );
        assert_eq!(
            Step::NotRetried {
                why: "all attempts are used",
                numbers: "2 of 2".into()
            }
            .to_string(),
            "not tried again: all attempts are used: 2 of 2"
        );
    }
}

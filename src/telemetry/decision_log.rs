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

use crate::telemetry::reason::Reason;

/// Requests that are remembered.
const MAX_LOGGED_REQUESTS: usize = 2_048;

/// Steps of one request; those after are not kept.
pub const MAX_DECISIONS: usize = 32;

/// A request, and what was decided about it.
#[derive(Debug)]
pub struct RequestDecisions {
    /// When it had ended.
    pub ended_at: SystemTime,
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
    pub duration: Duration,
    /// What was decided, and when after its head.
    pub decisions: Vec<(Duration, Decision)>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It was refused, or would have been in shadow mode.
    Refused {
        /// Why.
        reason: Reason,
        /// Who refuses.
        by: Arc<str>,
        /// The numbers.
        evidence: String,
        /// Whether shadow mode let it pass.
        is_shadow: bool,
    },
    /// An attempt failed.
    AttemptFailed {
        /// Counted from 1.
        attempt: u32,
        /// Where.
        endpoint: Arc<str>,
        /// How.
        cause: String,
        /// After how long.
        duration: Duration,
    },
    /// It was not looked at, because the endpoint is leaving or new; another is asked.
    Reselected {
        /// Counted from 1.
        attempt: u32,
        /// Where.
        endpoint: Arc<str>,
        /// How it said so.
        cause: String,
    },
    /// It is tried again.
    Retried {
        /// After this wait.
        wait: Duration,
        /// Whether nothing had reached the backend.
        is_transparent: bool,
        /// Retries that are left in the budget.
        budget_remaining: u32,
    },
    /// It is not tried again.
    NotRetried {
        /// Why.
        cause: &'static str,
        /// The numbers.
        evidence: String,
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
    FallbackUsed {
        /// What.
        fallback: String,
        /// Whether it only would be.
        is_shadow: bool,
    },
    /// It was kept waiting on purpose.
    Delayed {
        /// For so long.
        by: Duration,
    },
}

impl Decision {
    /// The kind, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused {
                is_shadow: true, ..
            } => "would_refuse",
            Self::Refused { .. } => "refused",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::Reselected { .. } => "repicked",
            Self::Retried { .. } => "retried",
            Self::NotRetried { .. } => "not_retried",
            Self::Hedged { .. } => "hedged",
            Self::HedgeWon { .. } => "hedge_won",
            Self::FallbackUsed {
                is_shadow: true, ..
            } => "would_degrade",
            Self::FallbackUsed { .. } => "degraded",
            Self::Delayed { .. } => "delayed",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused {
                reason,
                by,
                evidence: numbers,
                is_shadow,
            } => {
                let phrase = if *is_shadow {
                    "would have been refused"
                } else {
                    "refused"
                };
                write!(f, "{phrase}: {}", reason.token())?;
                if !by.is_empty() {
                    write!(f, " by {by}")?;
                }
                if numbers.is_empty() {
                    Ok(())
                } else {
                    write!(f, ": {numbers}")
                }
            }
            Self::AttemptFailed {
                attempt,
                endpoint,
                cause: how,
                duration: took,
            } => write!(
                f,
                "attempt {attempt} at {endpoint} failed after {took:.1?}: {how}"
            ),
            Self::Reselected {
                attempt,
                endpoint,
                cause: how,
            } => write!(
                f,
                "attempt {attempt} was not looked at by {endpoint}, which is leaving or new ({how}); another is asked"
            ),
            Self::Retried {
                wait,
                is_transparent,
                budget_remaining: left,
            } => {
                let explanation = if *is_transparent {
                    "nothing had reached the backend"
                } else {
                    "the policy wants it tried again"
                };
                write!(
                    f,
                    "tried again after {wait:.1?}: {explanation}, {left} retries are left in the budget"
                )
            }
            Self::NotRetried {
                cause: explanation,
                evidence: numbers,
            } if numbers.is_empty() => {
                write!(f, "not tried again: {explanation}")
            }
            Self::NotRetried {
                cause: explanation,
                evidence: numbers,
            } => write!(f, "not tried again: {explanation}: {numbers}"),
            Self::Hedged {
                attempt,
                endpoint,
                delay,
            } => write!(
                f,
                "attempt {attempt} at {endpoint} besides: no answer within {delay:.1?}, or one that failed"
            ),
            Self::HedgeWon { endpoint } => write!(f, "{endpoint} answered before the others"),
            Self::FallbackUsed {
                fallback: with,
                is_shadow: false,
            } => write!(f, "answered instead: {with}"),
            Self::FallbackUsed { fallback: with, .. } => {
                write!(f, "would have been answered instead: {with}")
            }
            Self::Delayed { by } => write!(f, "kept waiting on purpose for {by:.1?}"),
        }
    }
}

/// The last requests about which something was decided.
#[derive(Debug, Default)]
pub struct DecisionLog {
    /// Guards a push or a search.
    ring: Mutex<VecDeque<Arc<RequestDecisions>>>,
}

impl DecisionLog {
    /// Remembers a request, instead of the oldest one if there are as many as may be.
    pub fn record(&self, request: RequestDecisions) {
        let request = Arc::new(request);
        let mut ring = self.lock();
        let oldest = if ring.len() >= MAX_LOGGED_REQUESTS {
            ring.pop_front()
        } else {
            None
        };
        ring.push_back(request);
        drop(ring);
        // Freed without the lock.
        drop(oldest);
    }

    /// Those that `wanted` holds for, the last first, so many at most.
    #[must_use]
    pub fn find(
        &self,
        matches: impl Fn(&RequestDecisions) -> bool,
        limit: usize,
    ) -> Vec<Arc<RequestDecisions>> {
        self.lock()
            .iter()
            .rev()
            .filter(|request| matches(request))
            .take(limit)
            .cloned()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<RequestDecisions>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

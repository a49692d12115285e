//! One decision about a request, with the numbers behind it.

use std::{fmt, sync::Arc, time::Duration};

use crate::telemetry::reason::Reason;

/// The most decisions that are kept of one request. Later ones are dropped.
pub const MAX_DECISIONS: usize = 32;

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
                evidence,
                is_shadow,
            } => write_refusal(f, *reason, by, evidence, *is_shadow),
            Self::AttemptFailed {
                attempt,
                endpoint,
                cause,
                duration,
            } => write!(
                f,
                "attempt {attempt} at {endpoint} failed after {duration:.1?}: {cause}"
            ),
            Self::Reselected {
                attempt,
                endpoint,
                cause,
            } => write!(
                f,
                "attempt {attempt} was not processed by {endpoint}, which drains or warms up \
                 ({cause}); another endpoint is selected"
            ),
            Self::Retried {
                wait,
                is_transparent,
                budget_remaining,
            } => {
                let why = if *is_transparent {
                    "nothing had reached the backend"
                } else {
                    "the policy retries this failure"
                };
                write!(
                    f,
                    "retried after {wait:.1?}: {why}, {budget_remaining} retries are left in the \
                     budget"
                )
            }
            Self::NotRetried { cause, evidence } if evidence.is_empty() => {
                write!(f, "not retried: {cause}")
            }
            Self::NotRetried { cause, evidence } => write!(f, "not retried: {cause}: {evidence}"),
            Self::Hedged {
                attempt,
                endpoint,
                delay,
            } => write!(
                f,
                "hedged with attempt {attempt} at {endpoint}: no good response within {delay:.1?}"
            ),
            Self::HedgeWon { endpoint } => write!(f, "{endpoint} responded before the others"),
            Self::FallbackUsed {
                fallback,
                is_shadow: false,
            } => write!(f, "response replaced by {fallback}"),
            Self::FallbackUsed { fallback, .. } => {
                write!(f, "response would have been replaced by {fallback}")
            }
            Self::Delayed { by } => write!(f, "delayed by an injected fault for {by:.1?}"),
        }
    }
}

fn write_refusal(
    f: &mut fmt::Formatter<'_>,
    reason: Reason,
    rejected_by: &str,
    evidence: &str,
    is_shadow: bool,
) -> fmt::Result {
    let rejected = if is_shadow {
        "would have been rejected"
    } else {
        "rejected"
    };
    write!(f, "{rejected}: {}", reason.token())?;
    if !rejected_by.is_empty() {
        write!(f, " by {rejected_by}")?;
    }
    if evidence.is_empty() {
        Ok(())
    } else {
        write!(f, ": {evidence}")
    }
}

#[cfg(test)]
mod tests;

//! Renders one decision about a request, with the numbers behind it.
//!
//! The module defines the closed list of decisions. It does not know how a policy decides, or which
//! requests the decision log stores.

use std::{fmt, sync::Arc, time::Duration};

use crate::telemetry::reason::Reason;

/// Maximum number of decisions that are recorded per request. Later ones are dropped.
pub const MAX_DECISIONS: usize = 32;

/// Decision about one request, as `outrigger explain` shows it.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The request was rejected, or would have been rejected without shadow mode.
    Refused {
        /// Reason of the rejection, which is also a metric label.
        reason: Reason,
        /// Name of the breaker, rule, limit or endpoint that rejects; may be empty.
        by: Arc<str>,
        /// Numbers behind the rejection, as text; may be empty.
        evidence: String,
        /// Whether shadow mode let the request pass.
        is_shadow: bool,
    },
    /// An attempt at an endpoint failed.
    AttemptFailed {
        /// Attempt number within the request, from 1.
        attempt: u32,
        /// Address of the endpoint of the attempt.
        endpoint: Arc<str>,
        /// Status of the response, or description of the failure.
        cause: String,
        /// Duration from the start of the attempt to its failure.
        duration: Duration,
    },
    /// A draining or new endpoint did not process the attempt, and another endpoint is selected.
    Reselected {
        /// Attempt number within the request, from 1. The next endpoint receives the same attempt.
        attempt: u32,
        /// Address of the endpoint that did not process the attempt.
        endpoint: Arc<str>,
        /// Status of the response, or token of the connection failure.
        cause: String,
    },
    /// The request is sent again after a failed attempt.
    Retried {
        /// Backoff before the retry; zero if there is none.
        wait: Duration,
        /// Whether the backend provably did not process the failed attempt.
        is_transparent: bool,
        /// Number of retries that the budget still allows.
        budget_remaining: u32,
    },
    /// A failed attempt is not retried, or a late one is not hedged.
    NotRetried {
        /// Description of the reason, such as an exhausted budget.
        cause: &'static str,
        /// Numbers behind the decision, as text; may be empty.
        evidence: String,
    },
    /// An additional attempt is sent, because no good response arrived in time.
    Hedged {
        /// Number of the additional attempt within the request, from 1.
        attempt: u32,
        /// Address of the endpoint of the additional attempt.
        endpoint: Arc<str>,
        /// Time since the start after which a response counts as late.
        delay: Duration,
    },
    /// An additional attempt responded first, and its response is used.
    HedgeWon {
        /// Address of the endpoint whose response is used.
        endpoint: Arc<str>,
    },
    /// A fallback or a cached response replaces a failure.
    FallbackUsed {
        /// Description of the response that replaces the failure.
        fallback: String,
        /// Whether shadow mode kept the original response.
        is_shadow: bool,
    },
    /// Fault injection delays the request.
    Delayed {
        /// Duration of the injected delay.
        by: Duration,
    },
}

impl Decision {
    /// Returns the kind of the decision as a token for programs, such as `attempt_failed`.
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
            } => write_retry(f, *wait, *is_transparent, *budget_remaining),
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

fn write_retry(
    f: &mut fmt::Formatter<'_>,
    wait: Duration,
    is_transparent: bool,
    budget_remaining: u32,
) -> fmt::Result {
    let why = if is_transparent {
        "the backend did not process the request"
    } else {
        "the policy retries this failure"
    };
    write!(
        f,
        "retried after {wait:.1?}: {why}, {budget_remaining} retries are left in the budget"
    )
}

#[cfg(test)]
mod tests;

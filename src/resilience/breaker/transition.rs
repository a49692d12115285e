//! The states of a breaker, and the transitions between them.

use crate::resilience::breaker::call::CallCounts;

/// State of a breaker, without the data of that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Calls are admitted and counted.
    Closed,
    /// Calls are rejected until the open time is over.
    Open,
    /// A limited number of calls probes the backend.
    HalfOpen,
    /// Calls are rejected until an operator ends this state.
    ForcedOpen,
    /// Calls are admitted without being counted, until an operator ends this state.
    Disabled,
}

/// Cause of a state transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransitionCause {
    /// The number of consecutive failures reached its threshold.
    ConsecutiveFailures,
    /// The failure rate reached its threshold.
    FailureRate,
    /// The slow-call rate reached its threshold.
    SlowCallRate,
    /// The open time is over, and a call arrived.
    OpenTimeElapsed,
    /// The probes of a half-open round passed.
    ProbesPassed,
    /// The probes of a half-open round failed.
    ProbesFailed,
    /// The half-open round exceeded its maximum duration.
    ProbesTimedOut,
    /// An operator changed the state.
    Manual,
}

/// A transition from one state to another, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a transition that is not told is invisible"]
pub struct Transition {
    /// State before the transition.
    pub from: StateKind,
    /// State after the transition.
    pub to: StateKind,
    /// Cause of the transition.
    pub cause: TransitionCause,
    /// Counts of the window or of the probes at the transition.
    pub counts: CallCounts,
}

//! Collects the decisions of the policies about one request, with the time of each.
//!
//! A request without a decision, such as one that passes every policy, causes no allocation.
//! The module does not decide whether the trace is stored.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    clock,
    telemetry::decision::{Decision, MAX_DECISIONS},
};

/// Decisions about one request in order, at most [`MAX_DECISIONS`].
#[derive(Debug)]
pub(crate) struct DecisionTrace {
    /// Time of arrival of the request. The times of the decisions are relative to it.
    started_at: Instant,
    /// The lock covers single appends. Only the attempts of a hedged request contend for it.
    decisions: Mutex<Vec<(Duration, Decision)>>,
}

impl DecisionTrace {
    /// Creates an empty trace of a request that arrived at `started_at`.
    pub(crate) fn new(started_at: Instant) -> Self {
        Self {
            started_at,
            decisions: Mutex::new(Vec::new()),
        }
    }

    /// Records a decision at the current time. It is dropped if the trace is full.
    pub(crate) fn record(&self, decision: Decision) {
        let mut decisions = self.lock();
        if decisions.len() < MAX_DECISIONS {
            decisions.push((
                clock::now().saturating_duration_since(self.started_at),
                decision,
            ));
        }
    }

    /// Returns all decisions in order, each with the time since the arrival of the request.
    pub(crate) fn into_decisions(self) -> Vec<(Duration, Decision)> {
        self.decisions.into_inner()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Duration, Decision)>> {
        self.decisions.lock()
    }
}

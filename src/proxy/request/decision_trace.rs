//! What is noted about a request while it is decided on, and the numbers behind a refusal.
//!
//! Nothing is noted about a request that simply passes, so that it costs nothing.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    clock,
    telemetry::decision_log::{Decision, MAX_DECISIONS},
};

/// The steps so far.
#[derive(Debug)]
pub(crate) struct DecisionTrace {
    started_at: Instant,
    /// Guards a push; nobody else has it at the same time, but the attempts of a hedged request.
    decisions: Mutex<Vec<(Duration, Decision)>>,
}

impl DecisionTrace {
    /// About a request that began then.
    pub(crate) fn new(started_at: Instant) -> Self {
        Self {
            started_at,
            decisions: Mutex::new(Vec::new()),
        }
    }

    /// Notes a step, if there is room.
    pub(crate) fn record(&self, decision: Decision) {
        let mut decisions = self.lock();
        if decisions.len() < MAX_DECISIONS {
            decisions.push((
                clock::now().saturating_duration_since(self.started_at),
                decision,
            ));
        }
    }

    /// All of them.
    pub(crate) fn into_decisions(self) -> Vec<(Duration, Decision)> {
        self.decisions
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Duration, Decision)>> {
        self.decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

//! Why the last requests got what they got: every step that was decided about one, with the numbers behind it.
//!
//! A request that simply passed is not kept: nothing was decided about it. So the ring holds what somebody may ask about, and a request without
//! trouble costs nothing here.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use crate::telemetry::decision::Decision;

/// Requests that are remembered.
const MAX_LOGGED_REQUESTS: usize = 2_048;

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

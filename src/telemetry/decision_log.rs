//! Stores the decisions about the latest requests, with the numbers behind each one.
//!
//! A bounded ring holds the requests that an operator may ask about, and replaces the oldest one.
//! The module does not know which requests those are. Its caller omits requests that passed without
//! a decision, so they cost nothing here.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};

use crate::telemetry::decision::Decision;

/// Maximum number of stored requests.
const MAX_LOGGED_REQUESTS: usize = 2_048;

/// Completed request with the decisions about it.
#[derive(Debug)]
pub struct RequestDecisions {
    /// Wall-clock time at which the request ended.
    pub ended_at: SystemTime,
    /// Identifier of the request, which the access log also states.
    pub request_id: String,
    /// Trace id of the client's `traceparent` header; empty if there is none.
    pub trace_id: String,
    /// HTTP method of the request.
    pub method: String,
    /// Requested host, as the client sent it; may be truncated.
    pub host: String,
    /// Path of the request, without its query; may be truncated.
    pub path: String,
    /// Name of the matched route; empty if none matched.
    pub route: String,
    /// Name of the backend that was selected last; empty if none was selected.
    pub backend: String,
    /// Address of the endpoint of the last attempt; empty without an attempt.
    pub endpoint: String,
    /// HTTP status of the response to the client; 0 if no response was sent.
    pub status: u16,
    /// Reason of a rejection or of an incomplete response, as `TOKEN[:NAME]`; otherwise empty.
    pub reason: String,
    /// Number of attempts. An attempt that replaces an unprocessed one is not counted.
    pub attempts: u32,
    /// Duration from the request head to the end of the response.
    pub duration: Duration,
    /// Decisions in order, each with the time since the request head.
    pub decisions: Vec<(Duration, Decision)>,
}

/// Bounded log of the latest requests with decisions.
#[derive(Debug, Default)]
pub struct DecisionLog {
    /// Stored requests, the oldest first. The lock covers one append or one search.
    ring: Mutex<VecDeque<Arc<RequestDecisions>>>,
}

impl DecisionLog {
    /// Stores a request. It replaces the oldest one if the log is full.
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
        // The memory of the oldest request is freed without the lock.
        drop(oldest);
    }

    /// Returns the requests for which `matches` returns true, the newest first, at most `limit`.
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
        self.ring.lock()
    }
}

#[cfg(test)]
mod tests;

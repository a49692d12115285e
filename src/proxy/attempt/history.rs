//! What a request has tried so far, and what its further attempts are bound by.

use crate::{proxy::request::deadline::Deadline, state::policies::concurrency_limit::LimitSampler};

/// The attempts of one request: what they share, and what they have tried.
pub(crate) struct AttemptSeries {
    pub(crate) history: AttemptHistory,
    /// The time that the request has, over all attempts.
    pub(crate) deadline: Deadline,
    /// Receives the latency of every attempt, if the concurrency limit is adaptive.
    pub(crate) limit_sampler: Option<LimitSampler>,
    /// Whether the next attempt replaces one that found no free connection. Both count as one.
    pub(crate) is_replacement: bool,
}

impl AttemptSeries {
    /// A request without attempts.
    pub(crate) fn new(deadline: Deadline, limit_sampler: Option<LimitSampler>) -> Self {
        Self {
            history: AttemptHistory::default(),
            deadline,
            limit_sampler,
            is_replacement: false,
        }
    }
}

/// The endpoints that a request was sent to, and the retries that it made.
#[derive(Debug, Default)]
pub(crate) struct AttemptHistory {
    endpoints: Vec<usize>,
    retries: u32,
    transparent_retries: u32,
}

impl AttemptHistory {
    /// Records that an endpoint was selected.
    pub(crate) fn record_endpoint(&mut self, endpoint: usize) {
        if !self.has_tried(endpoint) {
            self.endpoints.push(endpoint);
        }
    }

    /// Records a retry. A transparent retry follows an attempt that did not reach the backend.
    pub(crate) fn record_retry(&mut self, is_transparent: bool) {
        let count = if is_transparent {
            &mut self.transparent_retries
        } else {
            &mut self.retries
        };
        *count = count.saturating_add(1);
    }

    /// Whether no endpoint was selected yet.
    pub(crate) fn is_first_attempt(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Returns the number of different endpoints that were selected.
    pub(crate) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns the retries that the backend can have seen.
    pub(crate) fn retries(&self) -> u32 {
        self.retries
    }

    /// Returns the retries after attempts that did not reach the backend.
    pub(crate) fn transparent_retries(&self) -> u32 {
        self.transparent_retries
    }

    /// Returns the number of the next attempt among those that the backend can have seen, from 1.
    pub(crate) fn attempt_number(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// Whether an endpoint was selected before.
    pub(crate) fn has_tried(&self, endpoint: usize) -> bool {
        self.endpoints.contains(&endpoint)
    }
}

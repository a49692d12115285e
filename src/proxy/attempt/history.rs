//! What a request has tried so far, and the limits of its further attempts.
//!
//! The module only counts. It does not decide whether another attempt follows.

use crate::{proxy::request::deadline::Deadline, state::policies::concurrency_limit::LimitSampler};

/// The attempts of one request: their shared limits and their history.
pub(crate) struct AttemptSeries {
    pub(crate) history: AttemptHistory,
    /// Deadline of the request, over all its attempts.
    pub(crate) deadline: Deadline,
    /// Receives the latency of every attempt, if the concurrency limit is adaptive.
    pub(crate) limit_sampler: Option<LimitSampler>,
    /// Whether the next attempt replaces one that found no free connection. Both count as one
    /// attempt.
    pub(crate) is_replacement: bool,
}

impl AttemptSeries {
    /// Creates the series of a request that has made no attempt.
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

    /// Returns whether no endpoint was selected yet.
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

    /// Returns whether an endpoint was selected before.
    pub(crate) fn has_tried(&self, endpoint: usize) -> bool {
        self.endpoints.contains(&endpoint)
    }
}

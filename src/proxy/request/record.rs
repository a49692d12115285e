//! Collects the facts about a request that its access log entry and its metrics state.
//!
//! The stages of a request fill the fields as they learn them. The module does not write the
//! entry; `response::access_record` does.

use std::{sync::Arc, time::Instant};

use crate::{
    proxy::request::rate_limit_outcome::RateLimitOutcome, state::topology::endpoint::EndpointState,
    telemetry::reason::Reason,
};

/// Facts about one request, for its access log entry and its metrics.
pub(crate) struct RequestRecord {
    /// Time of arrival of the request head.
    pub(crate) started_at: Instant,
    /// Time at which the client had sent the whole request; `None` before the first attempt
    /// knows it.
    pub(crate) request_completed_at: Option<Instant>,
    /// Number of attempts, without those that replace an attempt that found no free connection.
    pub(crate) attempts: u32,
    /// Endpoint of the last attempt; `None` before the first one.
    pub(crate) endpoint: Option<Arc<EndpointState>>,
    /// HTTP status of the response to the client; 0 if none was written.
    pub(crate) status: u16,
    /// Reason of a rejection or of a broken response; `None` for a response of a backend.
    pub(crate) reason: Option<Reason>,
    pub(crate) grpc_status: Option<u8>,
    pub(crate) rate_limits: RateLimitOutcome,
    /// Breaker, rule, limit or endpoint that rejected the request; empty if there is none.
    pub(crate) rejected_by: Arc<str>,
    /// Number of bytes of the request body that the client sent, without framing.
    pub(crate) received_bytes: u64,
    /// Index of the route in the policy; `None` if no route matched.
    pub(crate) route_index: Option<usize>,
    /// Index of the destination in the route; `None` before it is selected.
    pub(crate) destination_index: Option<usize>,
    /// Index of the fallback among the auxiliary backends of the route; `None` without a
    /// fallback.
    pub(crate) auxiliary_index: Option<usize>,
}

impl RequestRecord {
    /// Creates the record of a request that arrived at `started_at`.
    pub(crate) fn new(started_at: Instant) -> Self {
        Self {
            started_at,
            request_completed_at: None,
            attempts: 0,
            endpoint: None,
            status: 0,
            reason: None,
            grpc_status: None,
            rate_limits: RateLimitOutcome::default(),
            rejected_by: Arc::default(),
            received_bytes: 0,
            route_index: None,
            destination_index: None,
            auxiliary_index: None,
        }
    }

    /// Returns the label of the endpoint of the last attempt; empty before the first one.
    pub(crate) fn endpoint_label(&self) -> Arc<str> {
        self.endpoint
            .as_ref()
            .map(|endpoint| endpoint.label.clone())
            .unwrap_or_default()
    }
}

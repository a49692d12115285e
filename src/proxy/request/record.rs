//! What is known of a request while it is served, for its access log entry and its metrics.

use std::{sync::Arc, time::Instant};

use crate::{
    proxy::request::rate_limit_outcome::RateLimitOutcome, state::topology::endpoint::EndpointState,
    telemetry::reason::Reason,
};

/// What is known of a request as it goes on, for its record.
pub(crate) struct RequestRecord {
    pub(crate) started_at: Instant,
    /// When all of the request had come, once it was asked somewhere.
    pub(crate) request_completed_at: Option<Instant>,
    pub(crate) attempts: u32,
    pub(crate) endpoint: Option<Arc<EndpointState>>,
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
    pub(crate) grpc_status: Option<u8>,
    pub(crate) rate_limits: RateLimitOutcome,
    /// Who refused.
    pub(crate) rejected_by: Arc<str>,
    pub(crate) received_bytes: u64,
    /// The index of the route.
    pub(crate) route_index: Option<usize>,
    /// The index of the destination in the route.
    pub(crate) destination_index: Option<usize>,
    /// The index of the one that is asked instead.
    pub(crate) auxiliary_index: Option<usize>,
}

impl RequestRecord {
    /// A request that has just come.
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

    /// The endpoint that was asked last.
    pub(crate) fn endpoint_label(&self) -> Arc<str> {
        self.endpoint
            .as_ref()
            .map(|endpoint| endpoint.label.clone())
            .unwrap_or_default()
    }
}

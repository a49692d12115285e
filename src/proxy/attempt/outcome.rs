//! The outcome of one attempt: a response head or an error.
//!
//! The module defines the types and the rejections that follow from errors. It does not decide
//! on retries.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    proxy::{
        attempt::reporter::AttemptReporter,
        request::{
            classify::TransportError,
            context::RequestContext,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
        },
        upstream::stream::{Upstream, WriteError},
    },
    state::topology::endpoint::{EndpointGuard, EndpointState},
    telemetry::reason::Reason,
};

/// A response of a backend whose head has arrived and whose body is still to be relayed.
pub(crate) struct UpstreamResponse {
    pub(crate) stream: Upstream,
    pub(crate) head: ResponseSummary,
    /// Counts the request at its endpoint until the response has been read.
    pub(crate) in_flight: EndpointGuard,
    /// The report that waits for the trailers of a gRPC call.
    pub(crate) pending_report: Option<Box<AttemptReporter>>,
}

/// Properties of a response that its head does not contain.
pub(crate) struct ResponseSummary {
    /// Whether both sides switch to another protocol than HTTP after this head.
    pub(crate) is_upgrade: bool,
    /// Whether the endpoint states that it did not process the request.
    pub(crate) is_unprocessed: bool,
    /// Whether the backend still reads the request body.
    pub(crate) accepts_body: bool,
    /// The first chunk of the body, if it was awaited.
    pub(crate) first_chunk: Option<Bytes>,
    /// The gRPC status, if the head or an early end states it.
    pub(crate) grpc_status: Option<u8>,
    /// Time at which the client stops waiting for the end of its call, if it stated one.
    pub(crate) call_deadline: Option<Instant>,
}

impl UpstreamResponse {
    /// Returns the status as text for logs: the gRPC status if there is one, else the HTTP
    /// status.
    pub(crate) fn status_text(&self) -> String {
        match self.head.grpc_status {
            Some(status) => format!("grpc-status {status}"),
            None => self
                .stream
                .head()
                .map(|head| head.status.as_u16().to_string())
                .unwrap_or_default(),
        }
    }
}

/// Why an attempt has no response that can be relayed as it is.
pub(crate) enum AttemptError {
    /// The backend failed. A retry may follow.
    Transport(TransportError),
    /// The endpoint drains or warms up and did not process the request. Its response is
    /// retained for the case that no other endpoint is left.
    Unprocessed(Box<UpstreamResponse>),
    /// All connections that the endpoint may have are busy. Another endpoint may have room.
    ConnectionLimitReached,
    /// The proxy or the client ended the request.
    Rejected(Rejection),
}

impl From<TransportError> for AttemptError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<Rejection> for AttemptError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<WriteError> for AttemptError {
    fn from(error: WriteError) -> Self {
        Self::Rejected(error.into())
    }
}

/// Returns the rejection of a request whose last attempt failed at an endpoint.
pub(crate) fn transport_rejection(error: TransportError, endpoint: Arc<str>) -> Rejection {
    Rejection::new(error.reason(), endpoint)
}

/// Returns the rejection of a request for which every endpoint already has its maximum of busy
/// connections.
pub(crate) fn connection_limit_rejection(
    context: &RequestContext<'_>,
    endpoint: Option<&Arc<EndpointState>>,
) -> Rejection {
    let rejected_by = endpoint.map_or_else(
        || context.destination.backend.spec.name.clone(),
        |endpoint| endpoint.label.clone(),
    );
    Rejection::new(Reason::ConnectionLimit, rejected_by).with_retry_after(DEFAULT_RETRY_AFTER)
}

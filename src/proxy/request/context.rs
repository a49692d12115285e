//! Where a request goes and under which policy, once its route is known.

use std::sync::Arc;

use http::HeaderValue;

use crate::{
    policy::{document::Direction, matching::RouteRule, snapshot::Protocol},
    proxy::{
        request::{authority::RequestTarget, decision_trace::DecisionTrace},
        upstream::worker::Worker,
    },
    state::active_policy::{ActivePolicy, DestinationState, RouteState},
};

/// The immutable facts of a routed request. It is a set of references, so that a copy costs nothing.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    /// The policy that the request has pinned from its start to its end.
    pub(crate) active_policy: &'a Arc<ActivePolicy>,
    pub(crate) route: &'a RouteState,
    /// The rule of the route that matched.
    pub(crate) rule: &'a RouteRule,
    /// The backend of the route that was drawn by weight.
    pub(crate) destination: &'a DestinationState,
    pub(crate) request_target: &'a RequestTarget,
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) decision_trace: &'a DecisionTrace,
}

impl<'a> RequestContext<'a> {
    /// Returns the same request on its way to another backend.
    pub(crate) fn with_destination(self, destination: &'a DestinationState) -> Self {
        Self {
            destination,
            ..self
        }
    }

    /// Whether the backend speaks HTTP/2.
    pub(crate) fn is_backend_http2(&self) -> bool {
        matches!(
            self.destination.backend.spec.protocol,
            Protocol::Http2 | Protocol::Grpc
        )
    }

    /// Whether the request came from a client of the service, and not from the app.
    pub(crate) fn is_inbound(&self) -> bool {
        self.route.spec.direction == Direction::Inbound
    }
}

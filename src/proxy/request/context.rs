//! Route, destination and policy of a request, once they are known.
//!
//! The module decides nothing. It makes the references that most stages need available as one
//! argument.

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

/// Immutable facts of a routed request. It is a set of references, so a copy is cheap.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    /// Policy in force when the request arrived. The request keeps it across policy reloads.
    pub(crate) active_policy: &'a Arc<ActivePolicy>,
    pub(crate) route: &'a RouteState,
    /// Rule of the route that matched the request.
    pub(crate) rule: &'a RouteRule,
    /// Destination of the route that was selected by weight, or the fallback that replaces it.
    pub(crate) destination: &'a DestinationState,
    pub(crate) request_target: &'a RequestTarget,
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) decision_trace: &'a DecisionTrace,
}

impl<'a> RequestContext<'a> {
    /// Returns the facts of the same request, but for another destination.
    pub(crate) fn with_destination(self, destination: &'a DestinationState) -> Self {
        Self {
            destination,
            ..self
        }
    }

    /// Returns whether the backend speaks HTTP/2.
    pub(crate) fn is_backend_http2(&self) -> bool {
        matches!(
            self.destination.backend.spec.protocol,
            Protocol::Http2 | Protocol::Grpc
        )
    }

    /// Returns whether the request came from a client of the service, and not from the app.
    pub(crate) fn is_inbound(&self) -> bool {
        self.route.spec.direction == Direction::Inbound
    }
}

//! Lifecycle headers: what sidecars report to each other in response heads about startup and
//! drain.
//!
//! A draining instance states it in every response to a client, and a new instance states its
//! start time. A sidecar that reads this from an endpoint avoids the endpoint while it drains,
//! or sends it only the share that its warm-up allows.
//!
//! Both headers apply to one hop and are never forwarded. Otherwise a client would attribute
//! the state of the endpoint to the gateway in front of it. This module does not know the
//! stages of a drain or the warm-up curve.

use std::{sync::Arc, time::Instant};

use http::StatusCode;

use crate::{
    clock,
    message::headers::Headers,
    proxy::{
        request::{context::RequestContext, grpc},
        upstream::worker::Worker,
        wire::header_names::{DRAINING, REASON, STARTED_AT},
    },
    state::{
        State,
        active_policy::ActivePolicy,
        topology::endpoint::{EndpointState, peer_lifecycle::PeerLifecycle},
    },
    telemetry::{event::Event, reason::Reason},
};

/// Lifecycle headers of this instance at one point in time. Both are usually absent.
#[derive(Debug, Default)]
pub(crate) struct LifecycleHeaders {
    draining: Option<Arc<str>>,
    started_at: Option<Arc<str>>,
}

/// Returns the lifecycle headers of this instance now.
///
/// The result is empty while the instance neither drains nor advertises its start.
pub(crate) fn current_headers(worker: &Worker, active_policy: &ActivePolicy) -> LifecycleHeaders {
    let State {
        drain, lifecycle, ..
    } = &*worker.state;
    if !lifecycle.instance_age.is_advertising() && !drain.is_draining() {
        return LifecycleHeaders::default();
    }
    let started_at = lifecycle
        .instance_age
        .started_at_header(active_policy.snapshot.lifecycle.warm_up.as_ref());
    LifecycleHeaders {
        draining: drain.draining_header(clock::now).map(Arc::from),
        started_at,
    }
}

impl IntoIterator for LifecycleHeaders {
    type Item = (&'static str, Arc<str>);
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Self::Item>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        [
            self.draining.map(|value| (DRAINING, value)),
            self.started_at.map(|value| (STARTED_AT, value)),
        ]
        .into_iter()
        .flatten()
    }
}

/// Records the lifecycle headers of an endpoint's response and returns whether there were any.
///
/// The first notice of a drain emits an event.
pub(crate) fn observe(
    context: &RequestContext<'_>,
    endpoint: &EndpointState,
    response_headers: &Headers,
    now: Instant,
) -> bool {
    let Some(peer_lifecycle) = parse_announcement(response_headers) else {
        return false;
    };
    if let Some(ttl) = endpoint.observe(&peer_lifecycle, clock::wall_time, now) {
        let backend = context.destination.backend.spec.name.clone();
        context
            .worker
            .state
            .telemetry
            .emit(Event::EndpointDraining {
                backend,
                endpoint: endpoint.label.clone(),
                ttl,
            });
    }
    true
}

fn parse_announcement(response_headers: &Headers) -> Option<PeerLifecycle> {
    let started_at = response_headers.get_str(STARTED_AT);
    PeerLifecycle::parse(started_at, response_headers.get_str(DRAINING))
}

/// Returns whether a response states that a draining or warming instance did not process the
/// request.
///
/// The statement is valid only if [`observe`] has found lifecycle headers. A sidecar removes
/// the reason header from responses of its own app. An app that forwards the reason header of
/// another service lacks the lifecycle headers, which end at each hop.
pub(crate) fn is_unprocessed(status: StatusCode, response_headers: &Headers) -> bool {
    if status != StatusCode::SERVICE_UNAVAILABLE
        && grpc::parse_status(response_headers) != Some(grpc::UNAVAILABLE)
    {
        return false;
    }
    let reason = response_headers.get_str(REASON);
    let token = reason.and_then(|value| value.split(':').next());
    token.is_some_and(|token| {
        [Reason::Draining, Reason::WarmingUp]
            .iter()
            .any(|reason| reason.token() == token)
    })
}

//! What sidecars tell each other about coming and going, in the heads of their answers.
//!
//! An instance that is leaving says so on every answer to its callers, and one that is new says since when it runs. Whoever reads that
//! from an endpoint leaves it alone, or gives it as much as it can bear. Both are about one hop: they are never passed on, so that a
//! gateway is not taken for the endpoint behind it.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    clock,
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

/// What this instance tells its callers now.
#[derive(Debug, Default)]
pub(crate) struct LifecycleHeaders {
    draining: Option<HeaderValue>,
    started_at: Option<HeaderValue>,
}

/// What this instance tells its callers now; most of the time nothing.
pub(crate) fn current_headers(worker: &Worker, active_policy: &ActivePolicy) -> LifecycleHeaders {
    let State {
        drain: departure,
        lifecycle,
        ..
    } = &*worker.state;
    if !lifecycle.instance_age.is_advertising() && !departure.is_draining() {
        return LifecycleHeaders::default();
    }
    let started_at = lifecycle
        .instance_age
        .started_at_header(active_policy.snapshot.lifecycle.warm_up.as_ref());
    // Both are made of digits and letters.
    let to_header_value = |text: String| HeaderValue::try_from(text).ok();
    LifecycleHeaders {
        draining: departure
            .draining_header(clock::now())
            .and_then(to_header_value),
        started_at: started_at.and_then(to_header_value),
    }
}

impl IntoIterator for LifecycleHeaders {
    type Item = (HeaderName, HeaderValue);
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

/// Takes note of what an endpoint tells about itself in an answer; whether it tells anything.
pub(crate) fn observe(
    context: &RequestContext<'_>,
    endpoint: &EndpointState,
    response_headers: &HeaderMap,
    now: Instant,
) -> bool {
    let Some(peer_lifecycle) = PeerLifecycle::from_headers(response_headers) else {
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

/// Whether an answer with signs says that the request was not looked at, because the instance is leaving or new. Without them it says nothing: a sidecar
/// takes such words of its app's away, and an app that hands on what somebody else told it lacks the signs, which go no further than one hop.
pub(crate) fn is_unprocessed(status: StatusCode, response_headers: &HeaderMap) -> bool {
    if status != StatusCode::SERVICE_UNAVAILABLE
        && grpc::parse_status(response_headers) != Some(grpc::UNAVAILABLE)
    {
        return false;
    }
    let token = response_headers
        .get(REASON)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(':').next());
    token.is_some_and(|token| {
        [Reason::Draining, Reason::WarmingUp]
            .iter()
            .any(|reason| reason.token() == token)
    })
}

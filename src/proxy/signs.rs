//! What sidecars tell each other about coming and going, in the heads of their answers.
//!
//! An instance that is leaving says so on every answer to its callers, and one that is new says since when it runs. Whoever reads that
//! from an endpoint leaves it alone, or gives it as much as it can bear. Both are about one hop: they are never passed on, so that a
//! gateway is not taken for the endpoint behind it.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{grpc, headers::REASON, serve::Exchange, worker::Worker};
use crate::{
    clock,
    state::{
        State, departure,
        endpoint::{EndpointState, presence::Told},
        live::Live,
        youth,
    },
    telemetry::{event::Event, reason::Reason},
};

/// Says to callers that this instance is leaving, and for how many seconds it is to be left alone.
pub(super) const DRAINING: HeaderName = HeaderName::from_static(departure::MARKER);

/// Says to callers since when this instance has been ready, in seconds since 1970, and how it wants to warm up.
pub(super) const STARTED_AT: HeaderName = HeaderName::from_static(youth::STARTED_AT);

/// Says to an endpoint that its warm-up is known here, and that it gets no more than it wants.
pub(super) const WEIGHED: HeaderName = HeaderName::from_static("x-outrigger-weighed");

/// What this instance tells its callers now.
#[derive(Debug, Default)]
pub(super) struct Signs {
    draining: Option<HeaderValue>,
    started_at: Option<HeaderValue>,
}

/// What this instance tells its callers now; most of the time nothing.
pub(super) fn of(worker: &Worker, live: &Live) -> Signs {
    let State {
        departure,
        lifecycle,
        ..
    } = &*worker.state;
    if !lifecycle.youth.is_told() && !departure.is_draining() {
        return Signs::default();
    }
    let introduction = lifecycle
        .youth
        .introduction(live.snapshot.lifecycle.warm_up.as_ref());
    // Both are made of digits and letters.
    let value = |text: String| HeaderValue::try_from(text).ok();
    Signs {
        draining: departure.marker(clock::now()).and_then(value),
        started_at: introduction.and_then(value),
    }
}

impl IntoIterator for Signs {
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
pub(super) fn note(
    exchange: &Exchange<'_>,
    endpoint: &EndpointState,
    answer: &HeaderMap,
    now: Instant,
) -> bool {
    let Some(told) = Told::of(answer) else {
        return false;
    };
    if let Some(ttl) = endpoint.hear(&told, clock::wall, now) {
        let backend = exchange.destination.backend.spec.name.clone();
        exchange.worker.state.telemetry.emit(Event::EndpointLeaves {
            backend,
            endpoint: endpoint.label.clone(),
            ttl,
        });
    }
    true
}

/// Whether an answer with signs says that the request was not looked at, because the instance is leaving or new. Without them it says nothing: a sidecar
/// takes such words of its app's away, and an app that hands on what somebody else told it lacks the signs, which go no further than one hop.
pub(super) fn is_unprocessed(status: StatusCode, answer: &HeaderMap) -> bool {
    if status != StatusCode::SERVICE_UNAVAILABLE && grpc::status(answer) != Some(grpc::UNAVAILABLE)
    {
        return false;
    }
    let token = answer
        .get(REASON)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(':').next());
    token.is_some_and(|token| {
        [Reason::Draining, Reason::WarmingUp]
            .iter()
            .any(|reason| reason.token() == token)
    })
}

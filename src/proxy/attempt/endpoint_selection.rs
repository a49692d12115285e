//! Selects the endpoint of an attempt and acquires a permit of its breaker.
//!
//! The order of preference is:
//!
//! - on the first attempt, an endpoint on probation after an ejection, as its probe;
//! - an endpoint that is untried in this request, has a free connection, and has no open
//!   breaker;
//! - any endpoint whose breaker is not open.
//!
//! The load balancer of the backend chooses among the candidates. The module does not know
//! health checks or the causes of an ejection.

use std::time::Instant;

use http::header;

use crate::{
    policy::snapshot::{HashKey, LoadBalancerSpec},
    proxy::{
        attempt::history::AttemptHistory,
        request::{
            context::RequestContext,
            evidence,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
            view::RequestView,
        },
    },
    resilience::balance::hash_ring,
    state::{
        active_policy::DestinationState,
        policies::breaker::{BreakerDecision, BreakerGuard},
        topology::{backend::selection::SelectionRequest, outlier::AttemptObservation},
    },
    telemetry::reason::Reason,
};

/// An endpoint with everything that observes an attempt at it.
pub(crate) struct SelectedEndpoint {
    pub(crate) index: usize,
    /// Permit of the breaker; `None` without a breaker, or if shadow mode admitted the attempt.
    pub(crate) breaker_guard: Option<BreakerGuard>,
    /// Reports the outcome to outlier detection and the latency to the load balancer, if either
    /// is configured.
    pub(crate) observation: Option<AttemptObservation>,
}

/// Selects an endpoint and acquires a permit of its breaker.
///
/// An endpoint that this request has tried is selected again only if there is no other.
///
/// # Errors
/// A rejection if no endpoint is available or the breakers reject the request. It states when
/// to retry.
pub(crate) fn select_endpoint(
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    history: &AttemptHistory,
    now: Instant,
) -> Result<SelectedEndpoint, Rejection> {
    let destination = context.destination;
    let (backend, breakers) = (&destination.backend, &destination.endpoint_breakers);
    let mut candidates = Candidates {
        destination,
        history,
        selection_request: SelectionRequest {
            hash_key: consistent_hash_key(context, request),
            now,
        },
        in_flight_limit: in_flight_limit(context),
        rejecting: Vec::new(),
    };
    // The first attempt may be the probe of an endpoint on probation. If it fails, a retry
    // selects another endpoint.
    let mut probe = if history.is_first_attempt() {
        backend.try_acquire_probe(request.is_idempotent(), now)
    } else {
        None
    };
    loop {
        let selected = match probe.take() {
            Some((index, observation)) if !candidates.is_rejecting(index) => {
                Some((index, Some(observation)))
            }
            _ => candidates.pick().map(|index| (index, None)),
        };
        let Some((index, observation)) = selected else {
            return Err(candidates.rejection());
        };
        let selected = |breaker| SelectedEndpoint {
            index,
            breaker_guard: breaker,
            observation: observation.or_else(|| backend.observe_attempt(index, now)),
        };
        let Some(breaker) = breakers.get(index).or(destination.breaker.as_ref()) else {
            return Ok(selected(None));
        };
        match breaker.try_acquire(now, fastrand::f64()) {
            BreakerDecision::Admitted(guard) => return Ok(selected(Some(guard))),
            BreakerDecision::WouldReject => {
                evidence::record_shadow_rejection(
                    context,
                    &Rejection::new(Reason::BreakerOpen, breaker.name().clone()),
                );
                return Ok(selected(None));
            }
            // The breaker is half-open and all its permits are taken. Another endpoint may
            // admit the request.
            BreakerDecision::Rejected(_) if !breakers.is_empty() => {
                candidates.rejecting.push(index);
            }
            BreakerDecision::Rejected(rejected) => {
                let retry_after = rejected.retry_after.unwrap_or(DEFAULT_RETRY_AFTER);
                return Err(Rejection::new(Reason::BreakerOpen, breaker.name().clone())
                    .with_retry_after(retry_after));
            }
        }
    }
}

/// Endpoints of a destination that one attempt may be sent to.
struct Candidates<'s> {
    destination: &'s DestinationState,
    history: &'s AttemptHistory,
    selection_request: SelectionRequest,
    /// Number of requests in flight at which an endpoint is busy.
    in_flight_limit: u32,
    /// Endpoints whose half-open breaker had no permit left for this attempt.
    rejecting: Vec<usize>,
}

impl Candidates<'_> {
    /// Selects an endpoint whose breaker admits requests, preferably one that is untried and
    /// has a free connection.
    fn pick(&self) -> Option<usize> {
        let backend = &self.destination.backend;
        let is_preferred = |index: usize| {
            !self.history.has_tried(index) && !self.is_rejecting(index) && !self.is_busy(index)
        };
        let is_allowed = |index: usize| !self.is_rejecting(index);
        backend
            .pick(self.selection_request, is_preferred, fastrand::f64)
            .or_else(|| backend.pick(self.selection_request, is_allowed, fastrand::f64))
    }

    /// Returns whether the breaker of an endpoint is open, or has rejected this attempt.
    fn is_rejecting(&self, index: usize) -> bool {
        let breaker = self.destination.endpoint_breakers.get(index);
        self.rejecting.contains(&index)
            || breaker
                .is_some_and(|breaker| breaker.retry_after(self.selection_request.now).is_some())
    }

    fn is_busy(&self, index: usize) -> bool {
        self.destination.backend.endpoints[index].in_flight() >= self.in_flight_limit
    }

    /// Returns the rejection of an attempt for which there is no endpoint.
    fn rejection(&self) -> Rejection {
        let breakers = &self.destination.endpoint_breakers;
        let reason = if (0..breakers.len()).any(|index| self.is_rejecting(index)) {
            Reason::BreakerOpen
        } else {
            Reason::NoHealthyEndpoint
        };
        let retry_after = breakers
            .iter()
            .filter_map(|breaker| breaker.retry_after(self.selection_request.now))
            .min()
            .unwrap_or(DEFAULT_RETRY_AFTER);
        Rejection::new(reason, self.destination.backend.spec.name.clone())
            .with_retry_after(retry_after)
    }
}

/// Returns the number of requests in flight at which all connections of an endpoint are busy.
///
/// HTTP/2 backends have no such number, because their connections carry several requests.
fn in_flight_limit(context: &RequestContext<'_>) -> u32 {
    let limits = context
        .destination
        .enforced_limits()
        .filter(|_| !context.is_backend_http2());
    limits.map_or(u32::MAX, |limits| limits.max_connections_per_endpoint)
}

/// Returns the hash of the value that binds a request to an endpoint.
///
/// Returns `None` if the load balancer does not hash, or the request lacks the value.
fn consistent_hash_key(context: &RequestContext<'_>, request: &RequestView<'_>) -> Option<u64> {
    let LoadBalancerSpec::ConsistentHash { key, .. } =
        &context.destination.backend.spec.load_balancer
    else {
        return None;
    };
    let headers = &request.head.headers;
    match key {
        HashKey::Header(name) => headers.get(name).map(hash_ring::hash_key),
        HashKey::Cookie(name) => headers
            .get_all(header::COOKIE)
            .find_map(|cookies| cookie_value(cookies, name.as_bytes()))
            .map(hash_ring::hash_key),
        HashKey::ClientIp => Some(hash_ring::hash_key(
            request.client_ip().to_string().as_bytes(),
        )),
    }
}

/// Returns the value of a cookie by its whole name (RFC 6265 section 4.2.1).
fn cookie_value<'c>(cookies: &'c [u8], name: &[u8]) -> Option<&'c [u8]> {
    cookies.split(|byte| *byte == b';').find_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests;

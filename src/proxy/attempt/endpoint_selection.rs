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
    let backend = &destination.backend;
    let breakers = &destination.endpoint_breakers;
    let mut rejecting: Vec<usize> = Vec::new();
    let is_open = |rejecting: &[usize], index: usize| {
        rejecting.contains(&index)
            || breakers
                .get(index)
                .is_some_and(|breaker| breaker.retry_after(now).is_some())
    };
    let in_flight_limit = in_flight_limit(context);
    let is_busy = |index: usize| backend.endpoints[index].in_flight() >= in_flight_limit;
    // The first attempt may be the probe of an endpoint on probation. If it fails, a retry
    // selects another endpoint.
    let mut probe = if history.is_first_attempt() {
        backend.try_acquire_probe(request.is_idempotent(), now)
    } else {
        None
    };
    let selection_request = SelectionRequest {
        hash_key: consistent_hash_key(context, request),
        now,
    };
    loop {
        let selected = match probe.take() {
            Some((index, observation)) if !is_open(&rejecting, index) => {
                Some((index, Some(observation)))
            }
            _ => {
                let untried = backend.pick(
                    selection_request,
                    |index| {
                        !history.has_tried(index) && !is_open(&rejecting, index) && !is_busy(index)
                    },
                    fastrand::f64,
                );
                untried
                    .or_else(|| {
                        backend.pick(
                            selection_request,
                            |index| !is_open(&rejecting, index),
                            fastrand::f64,
                        )
                    })
                    .map(|index| (index, None))
            }
        };
        let Some((index, observation)) = selected else {
            let is_any_breaker_open = (0..breakers.len()).any(|index| is_open(&rejecting, index));
            let reason = if is_any_breaker_open {
                Reason::BreakerOpen
            } else {
                Reason::NoHealthyEndpoint
            };
            let retry_after = breakers
                .iter()
                .filter_map(|breaker| breaker.retry_after(now))
                .min()
                .unwrap_or(DEFAULT_RETRY_AFTER);
            return Err(
                Rejection::new(reason, backend.spec.name.clone()).with_retry_after(retry_after)
            );
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
                evidence::record_shadow_rejection(context, Reason::BreakerOpen, breaker.name());
                return Ok(selected(None));
            }
            // The breaker is half-open and all its permits are taken. Another endpoint may
            // admit the request.
            BreakerDecision::Rejected(_) if !breakers.is_empty() => rejecting.push(index),
            BreakerDecision::Rejected(rejected) => {
                let retry_after = rejected.retry_after.unwrap_or(DEFAULT_RETRY_AFTER);
                return Err(Rejection::new(Reason::BreakerOpen, breaker.name().clone())
                    .with_retry_after(retry_after));
            }
        }
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
        HashKey::Header(name) => headers
            .get(name)
            .map(|value| hash_ring::hash_key(value.as_bytes())),
        HashKey::Cookie(name) => headers
            .get_all(header::COOKIE)
            .iter()
            .find_map(|cookies| cookie_value(cookies.as_bytes(), name.as_bytes()))
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

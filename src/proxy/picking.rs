//! Which endpoint an attempt goes to, and the right to ask it.

use std::time::Instant;

use http::header;

use super::{
    asked::Asked,
    rejection::{Rejection, SOON},
    retrying::Tries,
    serve::Exchange,
};
use crate::{
    policy::snapshot::{Balancer, HashKey},
    resilience::balance::ring,
    state::{
        backend::Wish,
        breaker::{BreakerGuard, Passage},
        outlier::Observation,
    },
    telemetry::reason::Reason,
};

/// An endpoint that may be asked.
pub(super) struct Picked {
    pub(super) index: usize,
    /// The right to ask it.
    pub(super) breaker: Option<BreakerGuard>,
    /// Who wants to know how it goes.
    pub(super) observation: Option<Observation>,
}

/// Picks an endpoint. One that was tried in this request is taken again only when there is no other.
pub(super) fn pick(
    exchange: &Exchange<'_>,
    asked: &Asked<'_>,
    tries: &Tries,
    now: Instant,
) -> Result<Picked, Rejection> {
    let destination = exchange.destination;
    let backend = &destination.backend;
    let breakers = &destination.endpoint_breakers;
    let mut refused: Vec<usize> = Vec::new();
    let is_open = |refused: &[usize], index: usize| {
        refused.contains(&index)
            || breakers
                .get(index)
                .is_some_and(|breaker| breaker.refuses_for(now).is_some())
    };
    let full = busy_at(exchange);
    let is_busy = |index: usize| backend.endpoints[index].in_flight() >= full;
    // The first attempt may be the probe that brings an endpoint back; should it fail, a retry goes elsewhere.
    let mut probe = if tries.is_first() {
        backend.probe(asked.is_idempotent(), now)
    } else {
        None
    };
    let wish = Wish {
        key: key(exchange, asked),
        now,
    };
    loop {
        let picked = match probe.take() {
            Some((index, observation)) if !is_open(&refused, index) => {
                Some((index, Some(observation)))
            }
            _ => {
                let fresh = backend.pick(
                    wish,
                    |index| !tries.contains(index) && !is_open(&refused, index) && !is_busy(index),
                    fastrand::f64,
                );
                fresh
                    .or_else(|| {
                        backend.pick(wish, |index| !is_open(&refused, index), fastrand::f64)
                    })
                    .map(|index| (index, None))
            }
        };
        let Some((index, observation)) = picked else {
            let is_breakers = (0..breakers.len()).any(|index| is_open(&refused, index));
            let reason = if is_breakers {
                Reason::BreakerOpen
            } else {
                Reason::NoHealthyEndpoint
            };
            let wait = breakers
                .iter()
                .filter_map(|breaker| breaker.refuses_for(now))
                .min()
                .unwrap_or(SOON);
            return Err(Rejection::by(reason, backend.spec.name.clone()).after(wait));
        };
        let picked = |breaker| Picked {
            index,
            breaker,
            observation: observation.or_else(|| backend.observe(index, now)),
        };
        let Some(breaker) = breakers.get(index).or(destination.breaker.as_ref()) else {
            return Ok(picked(None));
        };
        match breaker.try_acquire(now, fastrand::f64()) {
            Passage::Allowed(guard) => return Ok(picked(Some(guard))),
            Passage::WouldRefuse => {
                exchange.would_refuse(Reason::BreakerOpen, breaker.name());
                return Ok(picked(None));
            }
            // All its probes are out; another endpoint may do.
            Passage::Refused(_) if !breakers.is_empty() => refused.push(index),
            Passage::Refused(rejected) => {
                let wait = rejected.retry_after.unwrap_or(SOON);
                return Err(Rejection::by(Reason::BreakerOpen, breaker.name().clone()).after(wait));
            }
        }
    }
}

/// With so many requests in flight all connections are busy that an endpoint may have; on those of HTTP/2 there is room for more.
fn busy_at(exchange: &Exchange<'_>) -> u32 {
    let limits = exchange
        .destination
        .enforced_limits()
        .filter(|_| !exchange.is_to_http2());
    limits.map_or(u32::MAX, |limits| limits.max_connections_each)
}

/// The hash of what binds a request to an endpoint, if it has it.
fn key(exchange: &Exchange<'_>, asked: &Asked<'_>) -> Option<u64> {
    let Balancer::ConsistentHash { key, .. } = &exchange.destination.backend.spec.balancer else {
        return None;
    };
    let headers = &asked.head.headers;
    match key {
        HashKey::Header(name) => headers.get(name).map(|value| ring::hash(value.as_bytes())),
        HashKey::Cookie(name) => headers
            .get_all(header::COOKIE)
            .iter()
            .find_map(|cookies| cookie(cookies.as_bytes(), name.as_bytes()))
            .map(ring::hash),
        HashKey::Source => Some(ring::hash(asked.source().to_string().as_bytes())),
    }
}

/// The value of a cookie (RFC 6265 section 4.2.1).
fn cookie<'c>(cookies: &'c [u8], name: &[u8]) -> Option<&'c [u8]> {
    cookies.split(|byte| *byte == b';').find_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let table: [(&[u8], Option<&[u8]>); 6] = [
            (b"id=7", Some(b"7")),
            (b"a=1; id=7; b=2", Some(b"7")),
            (b"a=1;id=7=8", Some(b"7=8")),
            (b"xid=7", None),
            (b"id", None),
            (b"", None),
        ];
        for (cookies, expected) in table {
            assert_eq!(
                cookie(cookies, b"id"),
                expected,
                "{}",
                String::from_utf8_lossy(cookies)
            );
        }
    }
}

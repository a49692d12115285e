//! A connection to an endpoint: an idle one from the pool, a place on a shared one, or a new one.

use std::{sync::Arc, time::Instant};

use super::{http2::client::Shared, pool::Idle, upstream::Upstream, worker::Worker};
use crate::{
    clock,
    policy::snapshot::ClientTlsSpec,
    state::{
        endpoint::{ConnectionGuard, EndpointState, TooMany},
        tls::Material,
    },
    telemetry::metrics::name,
    transport::{
        paced::Paced,
        socket::Socket,
        wire::{self, Connection},
    },
};

/// What a connection must be like.
pub(super) struct Wanted<'w> {
    /// Whether a request that is lost on it could be repeated.
    pub(super) is_repeatable: bool,
    pub(super) max_connections: u32,
    /// To one endpoint.
    pub(super) max_connections_each: u32,
    /// When making one has taken too long.
    pub(super) until: Option<Instant>,
    pub(super) is_http2: bool,
    pub(super) tls: Option<&'w ClientTlsSpec>,
}

/// There is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// Refused, unreachable, or no socket to be had.
    Failed,
    /// Connected, but not agreed on TLS.
    NotTrusted,
    /// It took too long.
    TimedOut,
    /// There are as many as there may be.
    TooMany(TooMany),
}

/// Takes or makes a connection.
pub(super) async fn connect(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    wanted: &Wanted<'_>,
    now: Instant,
) -> Result<Upstream, NoConnection> {
    let material = match wanted.tls {
        None => None,
        Some(spec) => Some((
            spec,
            worker
                .state
                .tls
                .client(spec)
                .ok_or(NoConnection::NotTrusted)?,
        )),
    };
    let generation = material
        .as_ref()
        .map_or(0, |(_, material)| material.generation);
    if wanted.is_http2 {
        return share(worker, endpoint, wanted, material, generation, now).await;
    }
    if let Some(idle) = worker
        .pool()
        .take(endpoint, wanted.is_repeatable, generation, now)
    {
        return Ok(Upstream::http1(idle, endpoint.clone()));
    }
    let guard = count(worker, endpoint, wanted)?;
    let (connection, wire) = open(worker, endpoint, wanted, material).await?;
    Ok(Upstream::http1(
        Idle {
            stream: Box::new(connection),
            wire,
            guard,
            generation,
        },
        endpoint.clone(),
    ))
}

/// Takes a place on a shared connection. Who finds none makes one, and others wait for it meanwhile: else a hundred requests that
/// come together would make a hundred connections.
async fn share(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    wanted: &Wanted<'_>,
    material: Option<(&ClientTlsSpec, Material<rustls::ClientConfig>)>,
    generation: u64,
    now: Instant,
) -> Result<Upstream, NoConnection> {
    let shared = worker.pool().shared(endpoint);
    if let Some(place) = shared.place(generation, now) {
        return Ok(Upstream::http2(place, endpoint.clone()));
    }
    let turn = clock::until(wanted.until, shared.turn())
        .await
        .map_err(|_| NoConnection::TimedOut)?;
    if let Some(place) = shared.place(generation, now) {
        return Ok(Upstream::http2(place, endpoint.clone()));
    }
    let guard = count(worker, endpoint, wanted)?;
    let (connection, _) = open(worker, endpoint, wanted, material).await?;
    let made = clock::until(
        wanted.until,
        Shared::open(Paced(connection), guard, generation, now),
    )
    .await
    .map_err(|_| NoConnection::TimedOut)?;
    let made = made.map_err(|_| NoConnection::Failed)?;
    shared.add(made.clone());
    drop(turn);
    Ok(Upstream::http2(made.exchange(now), endpoint.clone()))
}

/// Counts a new connection. An idle one to a sibling, or one too old for this request, may give its place.
fn count(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    wanted: &Wanted<'_>,
) -> Result<ConnectionGuard, NoConnection> {
    let count = || endpoint.try_connect(wanted.max_connections, wanted.max_connections_each);
    count()
        .or_else(|reached| {
            if worker.evict_one(endpoint, reached) {
                count()
            } else {
                Err(reached)
            }
        })
        .map_err(NoConnection::TooMany)
}

async fn open(
    worker: &Worker,
    endpoint: &EndpointState,
    wanted: &Wanted<'_>,
    material: Option<(&ClientTlsSpec, Material<rustls::ClientConfig>)>,
) -> Result<(Connection, Arc<wire::Wire>), NoConnection> {
    let socket = match clock::until(wanted.until, Socket::connect(&endpoint.address)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            tracing::debug!("no connection to {}: {error}", endpoint.label);
            return Err(NoConnection::Failed);
        }
        Err(clock::Elapsed) => return Err(NoConnection::TimedOut),
    };
    let Some((spec, material)) = material else {
        return Ok(wire::open(socket, None));
    };
    let not_trusted = |why: &dyn std::fmt::Display| {
        tracing::debug!("no TLS with {}: {why}", endpoint.label);
        worker
            .state
            .telemetry
            .metrics
            .counter(
                name::TLS_FAILURES,
                &[("owner", &format!("backend {}", spec.sni))],
            )
            .increment(1);
        NoConnection::NotTrusted
    };
    let server = spec
        .sni
        .clone()
        .try_into()
        .map_err(|error: rustls::pki_types::InvalidDnsNameError| not_trusted(&error))?;
    let session = rustls::ClientConnection::new(material.config, server)
        .map_err(|error| not_trusted(&error))?;
    let (connection, wire) = wire::open(socket, Some(session.into()));
    match clock::until(wanted.until, wire.handshake()).await {
        Ok(Ok(agreed)) if wanted.is_http2 && agreed.protocol.as_deref() != Some(b"h2") => {
            Err(not_trusted(&"it does not speak HTTP/2"))
        }
        Ok(Ok(_)) => Ok((connection, wire)),
        Ok(Err(error)) => Err(not_trusted(&error)),
        Err(clock::Elapsed) => Err(NoConnection::TimedOut),
    }
}

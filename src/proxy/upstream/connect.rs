//! Connects to an endpoint: an idle connection from the pool, a stream on a shared HTTP/2
//! connection, or a new connection.
//!
//! The module does not select the endpoint and does not retry.

use std::{sync::Arc, time::Instant};

use crate::{
    clock,
    policy::snapshot::BackendTlsSpec,
    proxy::upstream::{
        http2::Http2Connection, http2_stream::ClientStream, pool::PooledConnection,
        stream::Upstream, worker::Worker,
    },
    state::topology::{
        endpoint::{ConnectionGuard, ConnectionLimitReached, EndpointState},
        tls::TlsMaterial,
    },
    telemetry::tls_subject::TlsSubject,
    transport::{
        self,
        backpressured_stream::BackpressuredStream,
        connect::{ClientTls, ConnectFailure},
        queued_stream::QueuedStream,
    },
};

/// Requirements of a request on its connection.
pub(crate) struct ConnectionRequirements<'w> {
    /// Name of the backend of the endpoint, for the metrics.
    pub(crate) backend: &'w Arc<str>,
    /// Whether the request can be retried if the connection turns out to be closed. It allows
    /// connections that were idle for longer.
    pub(crate) is_retryable: bool,
    /// Maximum number of connections to all endpoints of the backend, busy and idle.
    pub(crate) max_connections: u32,
    /// Maximum number of connections to one endpoint, busy and idle.
    pub(crate) max_connections_per_endpoint: u32,
    /// Time at which connecting fails with a timeout; `None` waits without limit.
    pub(crate) deadline: Option<Instant>,
    /// Whether the connection must use HTTP/2.
    pub(crate) is_http2: bool,
    /// TLS settings of the backend; `None` connects in plaintext.
    pub(crate) tls: Option<&'w BackendTlsSpec>,
}

/// Why a request has no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The endpoint refused or was unreachable, no socket was available, or the HTTP/2
    /// handshake failed.
    Failed,
    /// The TLS handshake failed, HTTP/2 was not negotiated, or the TLS material of the backend
    /// is not loaded.
    TlsFailed,
    /// The deadline expired before the connection was usable.
    TimedOut,
    /// The endpoint or the backend already has its maximum number of connections.
    LimitReached(ConnectionLimitReached),
}

/// TLS settings of a backend, with the material that is loaded for them.
struct EndpointTls<'s> {
    spec: &'s BackendTlsSpec,
    material: TlsMaterial<rustls::ClientConfig>,
}

/// Reuses a connection to an endpoint, or opens one.
///
/// # Errors
/// [`ConnectError`] states why there is no connection. Nothing of the request was sent.
pub(crate) async fn connect(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    requirements: &ConnectionRequirements<'_>,
    now: Instant,
) -> Result<Upstream, ConnectError> {
    let tls = match requirements.tls {
        None => None,
        Some(spec) => Some(EndpointTls {
            spec,
            material: worker
                .state
                .tls
                .backend_material(spec)
                .ok_or(ConnectError::TlsFailed)?,
        }),
    };
    let certificate_generation = tls_generation(tls.as_ref());
    if requirements.is_http2 {
        let connections = worker.pool().http2_connections(endpoint);
        return match connections.try_open_stream(certificate_generation, now) {
            Some(stream) => Ok(Upstream::from_http2(stream, endpoint.clone())),
            // Boxing keeps the future of every request with a pooled connection small.
            None => Box::pin(connect_http2(worker, endpoint, requirements, tls, now)).await,
        };
    }
    if let Some(pooled) = worker.pool().take(
        endpoint,
        requirements.is_retryable,
        certificate_generation,
        now,
    ) {
        return Ok(Upstream::from_http1(pooled, endpoint.clone()));
    }
    let connection_guard = acquire_connection_guard(worker, endpoint, requirements)?;
    let connection = Box::pin(open_connection(worker, endpoint, requirements, tls)).await?;
    Ok(Upstream::from_http1(
        PooledConnection {
            handle: connection.handle().clone(),
            stream: connection,
            connection_guard,
            certificate_generation,
        },
        endpoint.clone(),
    ))
}

/// Opens a stream on a shared HTTP/2 connection to an endpoint, which is not connected yet or has
/// no free stream.
///
/// One task opens a connection while the others wait for it.
/// Otherwise a burst of a hundred requests would open a hundred connections.
async fn connect_http2(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    requirements: &ConnectionRequirements<'_>,
    tls: Option<EndpointTls<'_>>,
    now: Instant,
) -> Result<Upstream, ConnectError> {
    let certificate_generation = tls_generation(tls.as_ref());
    let connections = worker.pool().http2_connections(endpoint);
    let connect_permit =
        clock::timeout_at(requirements.deadline, connections.acquire_connect_permit())
            .await
            .map_err(|_| ConnectError::TimedOut)?;
    if let Some(stream) = connections.try_open_stream(certificate_generation, now) {
        return Ok(Upstream::from_http2(stream, endpoint.clone()));
    }
    let connection_guard = acquire_connection_guard(worker, endpoint, requirements)?;
    let connection = open_connection(worker, endpoint, requirements, tls).await?;
    let made = clock::timeout_at(
        requirements.deadline,
        Http2Connection::handshake(
            BackpressuredStream(connection),
            connection_guard,
            certificate_generation,
            now,
        ),
    )
    .await
    .map_err(|_| ConnectError::TimedOut)?;
    let made = made.map_err(|_| ConnectError::Failed)?;
    connections.add(made.clone());
    drop(connect_permit);
    let stream = ClientStream::new(made.acquire_stream(now));
    Ok(Upstream::from_http2(stream, endpoint.clone()))
}

/// Returns the generation of the material by which a pooled connection is recognized; 0 without
/// TLS.
fn tls_generation(tls: Option<&EndpointTls<'_>>) -> u64 {
    tls.map_or(0, |tls| tls.material.generation)
}

/// Acquires a guard that counts a new connection.
///
/// At a limit, it closes one idle connection that counts against the same limit, and tries
/// again.
fn acquire_connection_guard(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    requirements: &ConnectionRequirements<'_>,
) -> Result<ConnectionGuard, ConnectError> {
    let try_acquire = || {
        endpoint.try_acquire_connection(
            requirements.max_connections,
            requirements.max_connections_per_endpoint,
        )
    };
    try_acquire()
        .or_else(|reached_limit| {
            if worker.evict_idle_connection(endpoint, reached_limit) {
                try_acquire()
            } else {
                Err(reached_limit)
            }
        })
        .map_err(ConnectError::LimitReached)
}

async fn open_connection(
    worker: &Worker,
    endpoint: &EndpointState,
    requirements: &ConnectionRequirements<'_>,
    tls: Option<EndpointTls<'_>>,
) -> Result<QueuedStream, ConnectError> {
    let tls = tls.map(|EndpointTls { spec, material }| ClientTls {
        config: material.config,
        server_name: &spec.sni,
        requires_http2: requirements.is_http2,
    });
    let connecting = transport::connect::connect(&endpoint.address, tls);
    let error = match clock::timeout_at(requirements.deadline, connecting).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
        Err(clock::Elapsed) => return Err(ConnectError::TimedOut),
    };
    tracing::debug!("no connection to {}: {error}", endpoint.label);
    Err(match error {
        ConnectFailure::Socket(_) => ConnectError::Failed,
        ConnectFailure::Tls(_) => {
            let subject = TlsSubject::Backend(requirements.backend.clone());
            worker.state.telemetry.metrics.record_tls_failure(&subject);
            ConnectError::TlsFailed
        }
    })
}

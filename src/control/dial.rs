//! Connects to endpoints for active health checks and app probes.
//!
//! The connection uses the same transport and the same TLS material as proxied requests, so
//! that a check tests the path that requests take. This module does not pool connections and
//! does not know why one is opened.

use std::sync::Arc;

use crate::{
    policy::snapshot::BackendTlsSpec,
    state::{State, topology::endpoint::EndpointState},
    transport::{
        queued_stream::{self, ConnectionHandle, QueuedStream},
        socket::Socket,
    },
};

/// Connects to an endpoint, and completes a TLS handshake if `tls` is set.
///
/// `protocol` is the only ALPN protocol that is offered. Without TLS it has no effect.
///
/// # Errors
/// A message that names the failed phase: `connect` or `tls`. With TLS, a peer that does not
/// select `h2` when `h2` is offered is an error.
pub(super) async fn connect(
    state: &State,
    endpoint: &EndpointState,
    tls: Option<&BackendTlsSpec>,
    protocol: Option<&[u8]>,
) -> Result<(QueuedStream, Arc<ConnectionHandle>), String> {
    let socket = Socket::connect(&endpoint.address)
        .await
        .map_err(|error| format!("connect: {error}"))?;
    let Some(spec) = tls else {
        return Ok(queued_stream::open(socket, None));
    };
    let material = state
        .tls
        .backend_material(spec)
        .ok_or_else(|| "tls: there are no certificates".to_owned())?;
    let mut config = (*material.config).clone();
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    let name = spec
        .sni
        .clone()
        .try_into()
        .map_err(|error| format!("tls: {error}"))?;
    let session = rustls::ClientConnection::new(Arc::new(config), name)
        .map_err(|error| format!("tls: {error}"))?;
    let (connection, wire) = queued_stream::open(socket, Some(session.into()));
    let agreed = wire
        .handshake()
        .await
        .map_err(|error| format!("tls: {error}"))?;
    match (protocol, agreed.alpn_protocol) {
        (Some(b"h2"), got) if got.as_deref() != Some(b"h2") => {
            Err("tls: it does not speak HTTP/2".to_owned())
        }
        _ => Ok((connection, wire)),
    }
}

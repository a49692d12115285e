//! A connection of our own to an endpoint: the same way that its requests go, under the same certificates.

use std::sync::Arc;

use crate::{
    policy::snapshot::BackendTlsSpec,
    state::{State, topology::endpoint::EndpointState},
    transport::{
        queued_stream::{self, ConnectionHandle, QueuedStream},
        socket::Socket,
    },
};

/// Connects to an endpoint; under TLS if its backend is spoken to so. `protocol` is what both sides must agree on, if anything.
///
/// # Errors
/// What went wrong, in words: refused, not trusted.
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

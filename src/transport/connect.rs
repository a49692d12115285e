//! Connects to an endpoint, with a TLS handshake if the backend uses TLS.
//!
//! Proxied requests and health checks connect in the same way, so that a check tests the path
//! that requests take. The module does not pool connections and has no timeouts.

use std::{fmt, io, sync::Arc};

use crate::{
    policy::snapshot::EndpointAddress,
    transport::{
        queued_stream::{self, QueuedStream},
        socket::Socket,
    },
};

/// TLS of a connection to an endpoint.
#[derive(Debug)]
pub struct ClientTls<'t> {
    /// Certificates, verification and offered protocols.
    pub config: Arc<rustls::ClientConfig>,
    /// Server name that is sent (SNI), and that the certificate must be valid for.
    pub server_name: &'t str,
    /// Whether the endpoint must select HTTP/2 (ALPN `h2`).
    pub requires_http2: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectFailure {
    /// No socket could be connected.
    Socket(io::Error),
    /// The TLS handshake failed, or HTTP/2 was not negotiated.
    Tls(String),
}

/// Writes the failed phase, `connect` or `tls`, and the cause.
impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => write!(f, "connect: {error}"),
            Self::Tls(cause) => write!(f, "tls: {cause}"),
        }
    }
}

impl std::error::Error for ConnectFailure {}

/// Connects to an endpoint, and completes a TLS handshake if `tls` is set.
///
/// # Errors
/// [`ConnectFailure`] states which phase failed.
pub async fn connect(
    address: &EndpointAddress,
    tls: Option<ClientTls<'_>>,
) -> Result<QueuedStream, ConnectFailure> {
    let socket = Socket::connect(address)
        .await
        .map_err(ConnectFailure::Socket)?;
    let Some(tls) = tls else {
        return Ok(queued_stream::open(socket, None));
    };
    let server_name = tls
        .server_name
        .to_owned()
        .try_into()
        .map_err(|error: rustls::pki_types::InvalidDnsNameError| tls_error(&error))?;
    let session = rustls::ClientConnection::new(tls.config, server_name)
        .map_err(|error| tls_error(&error))?;
    let connection = queued_stream::open(socket, Some(session.into()));
    let handshake = connection
        .handle()
        .handshake()
        .await
        .map_err(|error| tls_error(&error))?;
    if tls.requires_http2 && handshake.alpn_protocol.as_deref() != Some(b"h2") {
        return Err(tls_error(&"the endpoint does not support HTTP/2"));
    }
    Ok(connection)
}

fn tls_error(cause: &dyn fmt::Display) -> ConnectFailure {
    ConnectFailure::Tls(cause.to_string())
}

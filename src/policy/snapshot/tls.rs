//! Compiled TLS: the certificate files and the protocols. It does not know the contents of the
//! files.

use std::{fmt, path::PathBuf, sync::Arc};

/// Protocol of a listener or a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1; a listener also accepts HTTP/1.0.
    Http1,
    /// HTTP/2 only: by ALPN with TLS, and with prior knowledge without it.
    Http2,
    /// gRPC over HTTP/2. The status in the trailers determines the outcome.
    Grpc,
    /// HTTP/1 or HTTP/2, as negotiated by ALPN or detected from the first bytes.
    Auto,
}

/// Writes the name that policies use.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP1",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::Auto => "Auto",
        })
    }
}

/// TLS towards the clients of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerTlsSpec {
    /// Certificate that the listener presents, and its private key.
    pub identity: IdentityFiles,
    /// Certificate authorities of client certificates; without them, clients present none.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may connect without a certificate.
    pub is_client_certificate_optional: bool,
    /// Protocol that ALPN offers.
    pub protocol: Protocol,
    /// Location of the section, for messages about the files.
    pub location: SourceLocation,
}

/// TLS towards the endpoints of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendTlsSpec {
    /// Server name that is sent (SNI), and that the certificate must be valid for.
    pub sni: String,
    /// Certificate authorities of the endpoints; without them, those of the system are used.
    pub ca: Option<PathBuf>,
    /// Client certificate that the sidecar presents, and its private key, if configured.
    pub identity: Option<IdentityFiles>,
    /// Protocol that ALPN offers.
    pub protocol: Protocol,
    /// Location of the section, for messages about the files.
    pub location: SourceLocation,
}

/// Paths of a certificate and its private key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdentityFiles {
    /// Path of the certificate with its chain, in PEM format.
    pub cert: PathBuf,
    /// Path of the private key, in PEM format.
    pub key: PathBuf,
}

/// Location of a policy section, for messages about the files that it refers to.
///
/// All locations are equal and have the same hash, so that moving a line is not a change of the
/// policy.
#[derive(Debug, Clone)]
pub struct SourceLocation(pub Arc<str>);

impl PartialEq for SourceLocation {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SourceLocation {}

impl std::hash::Hash for SourceLocation {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

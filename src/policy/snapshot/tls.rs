//! TLS, as it is wanted: which files, and what is spoken. What the files hold is not policy.

use std::{fmt, path::PathBuf, sync::Arc};

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Whatever the client begins with.
    Auto,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerTlsSpec {
    /// Our certificate and its key.
    pub identity: IdentityFiles,
    /// The authorities of clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without one.
    pub is_client_certificate_optional: bool,
    /// What is spoken.
    pub protocol: Protocol,
    /// Where the policy says so.
    pub location: SourceLocation,
}

/// TLS towards a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendTlsSpec {
    /// The name that its certificate must have.
    pub sni: String,
    /// The authorities of its certificate; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<IdentityFiles>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Where the policy says so.
    pub location: SourceLocation,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdentityFiles {
    /// The certificate and its chain.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Where something stands in the policy files, for messages about what it refers to. All places are equal, so that moving a line
/// changes nothing.
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

//! Names the listener or backend that a certificate or a TLS handshake belongs to.
//!
//! The module does not know the certificates.

use std::{fmt, sync::Arc};

/// Listener or backend, identified by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TlsSubject {
    /// A listener, which presents its certificate to clients.
    Listener(Arc<str>),
    /// A backend, to which connections use TLS.
    Backend(Arc<str>),
}

impl TlsSubject {
    /// Returns the metric labels `kind` and `name`.
    #[must_use]
    pub fn labels(&self) -> [(&'static str, &str); 2] {
        let (kind, name) = match self {
            Self::Listener(name) => ("listener", name),
            Self::Backend(name) => ("backend", name),
        };
        [("kind", kind), ("name", name)]
    }
}

impl fmt::Display for TlsSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(_, kind), (_, name)] = self.labels();
        write!(f, "{kind} {name}")
    }
}

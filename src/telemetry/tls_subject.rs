//! What a certificate or a TLS handshake belongs to.

use std::{fmt, sync::Arc};

/// A listener or a backend, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TlsSubject {
    /// A listener, towards clients.
    Listener(Arc<str>),
    /// A backend.
    Backend(Arc<str>),
}

impl TlsSubject {
    /// Returns the metric labels.
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

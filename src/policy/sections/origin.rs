//! Where a section of the policies was written.

use std::{fmt, sync::Arc};

/// Source from which a policy section is inherited.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum SectionOrigin {
    /// The route of this name.
    Route(Arc<str>),
    /// The named policy that the route refers to.
    RoutePolicy(Arc<str>),
    /// The named policy that the backend refers to.
    BackendPolicy(Arc<str>),
    /// The defaults of the policy directory.
    Defaults,
    /// The built-in defaults of Outrigger.
    #[default]
    BuiltIn,
}

impl fmt::Display for SectionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(name) => write!(f, "route:{name}"),
            Self::RoutePolicy(name) => write!(f, "policy:{name}"),
            Self::BackendPolicy(name) => write!(f, "backend-policy:{name}"),
            Self::Defaults => f.write_str("defaults"),
            Self::BuiltIn => f.write_str("built-in"),
        }
    }
}

impl SectionOrigin {
    /// Returns the name of the state that belongs to this section and the backend.
    ///
    /// It is the name of the backend, so that routes share the state. A section from a route or
    /// its policy has a state of its own, named `BACKEND@ORIGIN`.
    #[must_use]
    pub fn state_name(&self, backend: &str) -> Arc<str> {
        match self {
            Self::Route(_) | Self::RoutePolicy(_) => format!("{backend}@{self}").into(),
            Self::BackendPolicy(_) | Self::Defaults | Self::BuiltIn => backend.into(),
        }
    }
}

//! Who keeps the limits of the whole service.

use std::{fmt, sync::Arc, time::Duration};

use super::SourcePlace;
use crate::policy::units::Span;

/// What the engine is, and what is done while it does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalRateLimitSpec {
    /// The engine.
    pub engine: EngineSpec,
    /// How long a request waits for it.
    pub timeout: Duration,
    /// Whether requests are refused without it.
    pub fails_closed: bool,
}

/// An engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineSpec {
    /// Somebody else keeps the buckets.
    Remote(RemoteSpec),
    /// The number of a backend's endpoints divides the limit.
    Replicas {
        /// The backend's index.
        backend: usize,
        /// Its name.
        name: Arc<str>,
    },
}

impl fmt::Display for GlobalRateLimitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.engine {
            EngineSpec::Remote(remote) => {
                let without = if self.fails_closed {
                    "refused"
                } else {
                    "let pass"
                };
                write!(
                    f,
                    "kept by {remote} for {}; without its answer within {} requests are {without}",
                    remote.scope(),
                    Span(self.timeout)
                )
            }
            EngineSpec::Replicas { name, .. } => {
                write!(f, "divided by the number of endpoints of {name}")
            }
        }
    }
}

/// Somebody who keeps buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteSpec {
    /// A Redis.
    Redis(RedisSpec),
    /// A server of Envoy's rate limit protocol.
    Service(ServiceSpec),
}

impl RemoteSpec {
    /// What its buckets are told apart from others by.
    #[must_use]
    pub fn scope(&self) -> &Arc<str> {
        match self {
            Self::Redis(redis) => &redis.prefix,
            Self::Service(service) => &service.domain,
        }
    }

    /// Where the policy says so.
    #[must_use]
    pub fn place(&self) -> &SourcePlace {
        match self {
            Self::Redis(redis) => &redis.place,
            Self::Service(service) => &service.place,
        }
    }
}

impl fmt::Display for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(redis) => write!(f, "redis at {}", redis.address),
            Self::Service(service) => write!(f, "the rate limit service at {}", service.url),
        }
    }
}

/// A server of Envoy's rate limit protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Where it is.
    pub url: Arc<str>,
    /// The domain that it knows.
    pub domain: Arc<str>,
    /// Where the policy says so.
    pub place: SourcePlace,
}

/// A Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSpec {
    /// Where it is, with its password.
    pub url: String,
    /// Where it is, without; `HOST:PORT`.
    pub address: Arc<str>,
    /// What its keys begin with.
    pub prefix: Arc<str>,
    /// Where the policy says so.
    pub place: SourcePlace,
}

// A password is shown to nobody.
impl fmt::Debug for RedisSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSpec")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

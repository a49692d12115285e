//! Who keeps the limits of the whole service.

use std::{fmt, sync::Arc, time::Duration};

use crate::policy::{snapshot::SourceLocation, units::PolicyDuration};

/// What the engine is, and what is done while it does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalRateLimitSpec {
    /// The engine.
    pub engine: RateLimitEngineSpec,
    /// How long a request waits for it.
    pub timeout: Duration,
    /// Whether requests are refused without it.
    pub fails_closed: bool,
}

/// An engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateLimitEngineSpec {
    /// Somebody else keeps the buckets.
    Remote(RemoteEngineSpec),
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
            RateLimitEngineSpec::Remote(remote) => {
                let outcome_without_engine = if self.fails_closed {
                    "refused"
                } else {
                    "let pass"
                };
                write!(
                    f,
                    "kept by {remote} for {}; without its answer within {} requests are {outcome_without_engine}",
                    remote.namespace(),
                    PolicyDuration(self.timeout)
                )
            }
            RateLimitEngineSpec::Replicas { name, .. } => {
                write!(f, "divided by the number of endpoints of {name}")
            }
        }
    }
}

/// Somebody who keeps buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteEngineSpec {
    /// A Redis.
    Redis(RedisSpec),
    /// A server of Envoy's rate limit protocol.
    Service(RateLimitServiceSpec),
}

impl RemoteEngineSpec {
    /// What its buckets are told apart from others by.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Redis(redis) => &redis.key_prefix,
            Self::Service(service) => &service.domain,
        }
    }

    /// Where the policy says so.
    #[must_use]
    pub fn location(&self) -> &SourceLocation {
        match self {
            Self::Redis(redis) => &redis.location,
            Self::Service(service) => &service.location,
        }
    }
}

impl fmt::Display for RemoteEngineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(redis) => write!(f, "redis at {}", redis.display_address),
            Self::Service(service) => write!(f, "the rate limit service at {}", service.url),
        }
    }
}

/// A server of Envoy's rate limit protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitServiceSpec {
    /// Where it is.
    pub url: Arc<str>,
    /// The domain that it knows.
    pub domain: Arc<str>,
    /// Where the policy says so.
    pub location: SourceLocation,
}

/// A Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSpec {
    /// Where it is, with its password.
    pub url: String,
    /// Where it is, without; `HOST:PORT`.
    pub display_address: Arc<str>,
    /// What its keys begin with.
    pub key_prefix: Arc<str>,
    /// Where the policy says so.
    pub location: SourceLocation,
}

// A password is shown to nobody.
impl fmt::Debug for RedisSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSpec")
            .field("address", &self.display_address)
            .field("prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

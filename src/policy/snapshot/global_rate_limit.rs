//! Compiled engine of the global rate limits, which all instances of the service share.
//!
//! The types hold configuration only. They do not know whether the engine is connected.

use std::{fmt, sync::Arc, time::Duration};

use crate::policy::{snapshot::tls::SourceLocation, units::PolicyDuration};

/// Engine of the global rate limits, and the behaviour while it does not respond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalRateLimitSpec {
    /// Engine that enforces the limits.
    pub engine: RateLimitEngineSpec,
    /// Maximum time that a request waits for a response of the engine.
    pub timeout: Duration,
    /// Whether requests are rejected if the engine does not respond in time; otherwise they are
    /// admitted.
    pub fails_closed: bool,
}

/// Engine of the global rate limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateLimitEngineSpec {
    /// A remote engine holds the buckets.
    Remote(RemoteEngineSpec),
    /// Each instance enforces its share: the limit divided by the number of endpoints of a backend.
    Replicas {
        /// Index of the backend.
        backend: usize,
        /// Name of the backend.
        name: Arc<str>,
    },
}

impl fmt::Display for GlobalRateLimitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)?;
        if let RateLimitEngineSpec::Remote(_) = &self.engine {
            let outcome = if self.fails_closed {
                "rejected"
            } else {
                "admitted"
            };
            let timeout = PolicyDuration(self.timeout);
            write!(
                f,
                "; requests without a decision within {timeout} are {outcome}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for RateLimitEngineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(remote) => write!(f, "{remote}, namespace {}", remote.namespace()),
            Self::Replicas { name, .. } => {
                write!(f, "divided by the number of endpoints of {name}")
            }
        }
    }
}

/// Remote engine that holds the buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteEngineSpec {
    /// Redis, with one key per bucket.
    Redis(RedisSpec),
    /// A service that implements Envoy's rate limit protocol.
    Service(RateLimitServiceSpec),
}

impl RemoteEngineSpec {
    /// Returns the key prefix or domain that separates its buckets from those of other services.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Redis(redis) => &redis.key_prefix,
            Self::Service(service) => &service.domain,
        }
    }

    /// Returns the location of the section, for messages about the engine.
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

/// A service that implements Envoy's rate limit protocol (`envoy.service.ratelimit.v3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitServiceSpec {
    /// URL of the service.
    pub url: Arc<str>,
    /// Domain of the limits in the configuration of the service.
    pub domain: Arc<str>,
    /// Location of the section, for messages about the engine.
    pub location: SourceLocation,
}

/// Redis server that holds the buckets.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSpec {
    /// URL of the server, with its password.
    pub url: String,
    /// Address of the server without the password, as `HOST:PORT`.
    pub display_address: Arc<str>,
    /// Prefix of the keys.
    pub key_prefix: Arc<str>,
    /// Location of the section, for messages about the engine.
    pub location: SourceLocation,
}

// Not derived, so that debug output never shows the password in the URL.
impl fmt::Debug for RedisSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSpec")
            .field("address", &self.display_address)
            .field("prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

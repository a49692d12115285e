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
    /// A Redis.
    Redis(RedisSpec),
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
            EngineSpec::Redis(redis) => {
                let without = if self.fails_closed { "refused" } else { "let pass" };
                write!(f, "kept by redis at {}, keys {}:*; without its answer within {} requests are {without}", redis.address, redis.prefix, Span(self.timeout))
            }
            EngineSpec::Replicas { name, .. } => write!(f, "divided by the number of endpoints of {name}"),
        }
    }
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
        f.debug_struct("RedisSpec").field("address", &self.address).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

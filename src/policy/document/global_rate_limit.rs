//! The engine that holds the rate limits of all instances of a service.
//!
//! The rules are in `rateLimit.global`. This module names only the engine that counts for them.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::units::PolicyDuration;

/// Engine for the rate limits that all instances of a service share (`rateLimit.global`).
///
/// The local limits of a request are checked first.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimit {
    /// Engine that counts the requests of all instances.
    pub backend: GlobalRateLimitEngine,
    /// Maximum time that a request waits for the response of the engine, 1ms to 1s. Default
    /// 20ms.
    pub timeout: Option<PolicyDuration>,
    /// Whether requests are rejected with 503 while the engine does not respond. If false, they
    /// are admitted, and a metric counts them. Default false.
    #[serde(default)]
    pub fail_closed: bool,
}

/// Engine that counts the requests of all instances. Only the section that belongs to `type` is
/// set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimitEngine {
    /// Type of the engine.
    #[serde(rename = "type")]
    pub kind: GlobalRateLimitEngineType,
    /// Connection to Redis. Required with Redis.
    pub redis: Option<RedisSection>,
    /// Connection to the service. Required with RateLimitService.
    pub rate_limit_service: Option<RateLimitService>,
    /// Source of the number of instances. Required with Replicas.
    pub replicas: Option<ReplicasSection>,
}

/// Type of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum GlobalRateLimitEngineType {
    /// Redis or Valkey holds the buckets. Instances with the same `prefix` share them. The
    /// build needs the feature `redis`, which is on by default.
    Redis,
    /// A server of Envoy's rate limit protocol (`envoy.service.ratelimit.v3`). It counts in
    /// whole units of time and receives the limit with each request. Rules may not use `queue`,
    /// a cost of 0, or a `burst` other than `requests`. The build needs the feature `rls`.
    RateLimitService,
    /// No engine. Each instance enforces the limit divided by the number of instances.
    Replicas,
}

/// Writes the name that policies use.
impl fmt::Display for GlobalRateLimitEngineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::RateLimitService => "RateLimitService",
            Self::Replicas => "Replicas",
        })
    }
}

/// Connection to Redis or Valkey.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisSection {
    /// Address, like `redis://127.0.0.1:6379/0` or `redis://USER:PASSWORD@HOST:6379`;
    /// `rediss://` uses TLS. The default port is 6379. Take passwords from the environment:
    /// `redis://:${REDIS_PASSWORD}@redis:6379`. Outrigger never displays them.
    pub url: String,
    /// Prefix of all keys, the same for all instances of the service, without spaces. Default
    /// the name of the document.
    pub prefix: Option<String>,
}

/// Connection to a server of Envoy's rate limit protocol.
///
/// Each rule is sent as the descriptor `rule: ROUTE/RULE`, with its limit as an override. A
/// rule with keys adds `key: HASH`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitService {
    /// Address of the server, like `http://ratelimit:8081`. `https://` uses TLS. User
    /// information like `USER:PASSWORD@` is not allowed.
    pub url: String,
    /// Domain that is configured in the server. Default the name of the document.
    pub domain: Option<String>,
}

/// Backend whose endpoints are the instances of this service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicasSection {
    /// Name of a backend whose endpoints are the instances of this service. The DNS name of a
    /// headless Service lists the instances that are ready. For rate limits, one instance is
    /// assumed until an endpoint is found.
    pub backend: String,
}

//! Who keeps the limits of the whole service.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::units::PolicyDuration;

/// Who keeps the limits that all instances of a service share (`rateLimit.global`). A request's local limits are asked first.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimit {
    /// The engine.
    pub backend: GlobalRateLimitEngine,
    /// How long a request waits for the engine's word. Default 20ms.
    pub timeout: Option<PolicyDuration>,
    /// Whether requests are refused while the engine does not answer. Default false: they pass, counted.
    #[serde(default)]
    pub fail_closed: bool,
}

/// An engine.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimitEngine {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: GlobalRateLimitEngineType,
    /// For Redis.
    pub redis: Option<RedisSection>,
    /// For RateLimitService.
    pub rate_limit_service: Option<RateLimitService>,
    /// For Replicas.
    pub replicas: Option<ReplicasSection>,
}

/// The kind of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum GlobalRateLimitEngineType {
    /// Redis or Valkey: the buckets are there, and instances with the same `prefix` share them.
    Redis,
    /// A server of Envoy's rate limit protocol (`envoy.service.ratelimit.v3`), which counts in whole units of time; it gets the limit with
    /// each request. In builds with the feature `rls`.
    RateLimitService,
    /// None: every instance keeps its share, the limit divided by the number of instances.
    Replicas,
}

/// A Redis or Valkey.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisSection {
    /// Where it is, like `redis://127.0.0.1:6379/0` or `redis://USER:PASSWORD@HOST:6379`. Take passwords from the environment:
    /// `redis://:${REDIS_PASSWORD}@redis:6379`. It is shown without them.
    pub url: String,
    /// What the keys begin with, the same for all instances of the service. Default the name of the document.
    pub prefix: Option<String>,
}

/// A server of Envoy's rate limit protocol. A rule is the descriptor `rule: ROUTE/RULE`, with `key: HASH` where it tells requests apart,
/// and its limit as an override.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitService {
    /// Where it is, like `http://ratelimit:8081`.
    pub url: String,
    /// The domain that it knows. Default the name of the document.
    pub domain: Option<String>,
}

/// Counting instances.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicasSection {
    /// A backend whose endpoints are the instances of this service, as discovery finds them: a headless Service's name lists those that
    /// are ready. As long as none is found, one is assumed.
    pub backend: String,
}

//! How an endpoint is chosen.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::units::{Percent, PolicyDuration};

/// How an endpoint is chosen.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// The algorithm. Default LeastRequest.
    #[serde(rename = "type")]
    pub kind: Option<LoadBalancerType>,
    /// An endpoint that is new gets a share that grows with its age.
    pub slow_start: Option<SlowStart>,
    /// What binds a request to an endpoint, for ConsistentHash.
    pub consistent_hash: Option<ConsistentHash>,
    /// When endpoints in the zone of this instance (`--zone`) are preferred.
    pub zone_aware: Option<ZoneAware>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// Of two drawn by weight, the one with fewer requests in flight per weight.
    LeastRequest,
    /// Of two drawn by weight, the one with the lower latency times requests in flight; failures count as slow.
    PeakEwma,
    /// One after the other, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// The same key goes to the same endpoint.
    ConsistentHash,
}

/// An endpoint that is new gets a share that grows with its age (Envoy's slow start).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowStart {
    /// After which time it gets its full share. Default 30s.
    pub window: Option<PolicyDuration>,
    /// 1 grows in a straight line, above 1 fast at first, below 1 late. Default 1.
    pub aggression: Option<f64>,
    /// What it gets at least, in percent of its share. Default 10.
    pub min_weight_percent: Option<Percent>,
}

/// What binds a request to an endpoint.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    /// Where the key is. A request without it goes to any endpoint, by weight.
    #[serde(rename = "type")]
    pub kind: ConsistentHashType,
    /// The header, for Header.
    pub header: Option<HashHeader>,
    /// The cookie, for Cookie.
    pub cookie: Option<HashCookie>,
    /// An endpoint takes at most so many percent of its share of what is in flight; what is above goes on to the next. Default 125.
    pub load_bound_percent: Option<u32>,
}

/// Where the key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ConsistentHashType {
    /// The value of a header.
    Header,
    /// The value of a cookie.
    Cookie,
    /// The address of the client.
    SourceIP,
}

/// A header to hash.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashHeader {
    /// Its name.
    pub name: String,
}

/// A cookie to hash.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
}

/// When endpoints in the zone of this instance are preferred.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ZoneAware {
    /// Enforce prefers them; Off spreads over all zones. Default Enforce.
    pub mode: Option<ZoneMode>,
    /// With fewer than so many in the zone, the traffic is spread over all zones. Default 1.
    pub min_endpoints_in_zone_threshold: Option<u32>,
}

/// Whether zones matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ZoneMode {
    /// They do.
    Enforce,
    /// They do not.
    Off,
}

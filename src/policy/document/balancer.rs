//! Load balancing: the algorithm that selects an endpoint, slow start and zones.
//!
//! The keys follow Envoy and Envoy Gateway. This module does not know the endpoints.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::units::{Percent, PolicyDuration};

/// Algorithm that selects an endpoint, with slow start and zone preference.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// Algorithm that selects an endpoint for each attempt. Default LeastRequest.
    #[serde(rename = "type")]
    pub kind: Option<LoadBalancerType>,
    /// Gradual increase of the traffic to a new or recovered endpoint. Not allowed with
    /// ConsistentHash.
    pub slow_start: Option<SlowStart>,
    /// Key that binds requests to an endpoint. Required with ConsistentHash, and not allowed
    /// with other types.
    pub consistent_hash: Option<ConsistentHash>,
    /// Preference for endpoints in the zone of this instance (`--zone`). Without this section,
    /// the preference is on.
    pub zone_aware: Option<ZoneAware>,
}

/// Algorithm that selects an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// Draws two endpoints by weight and selects the one with fewer requests in flight relative
    /// to its weight.
    LeastRequest,
    /// Draws two endpoints by weight and selects the one with the lower product of latency and
    /// requests in flight. Failures count as slow responses.
    PeakEwma,
    /// Selects the endpoints in turn, in proportion to their weights.
    RoundRobin,
    /// Selects an endpoint at random, in proportion to its weight.
    Random,
    /// Sends requests with the same key to the same endpoint.
    ConsistentHash,
}

/// Gradual increase of the traffic to a new or recovered endpoint (Envoy's slow start).
///
/// The share of its weight is `(age / window) ^ (1 / aggression)`, at least `minWeightPercent`.
/// Endpoints that the backend has from the beginning do not count as new.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowStart {
    /// Age from which the endpoint receives its full share, above 0s. Default 30s.
    pub window: Option<PolicyDuration>,
    /// Shape of the increase, above 0. At 1 it is linear, above 1 it is fast at first, and
    /// below 1 it is slow at first. Default 1.
    pub aggression: Option<f64>,
    /// Minimum share for a new endpoint, in percent of its weight. Default 10.
    pub min_weight_percent: Option<Percent>,
}

/// Key that binds requests to an endpoint.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    /// Source of the key. A request without a key is sent to a random endpoint, by weight.
    #[serde(rename = "type")]
    pub kind: ConsistentHashType,
    /// Header that holds the key. Required with Header, and not allowed with other types.
    pub header: Option<HashHeader>,
    /// Cookie that holds the key. Required with Cookie, and not allowed with other types.
    pub cookie: Option<HashCookie>,
    /// Maximum number of requests in flight at an endpoint, in percent of its share of all
    /// requests in flight; above 100. Further requests are sent to the next endpoint on the
    /// hash ring. Default 125.
    pub load_bound_percent: Option<u32>,
}

/// Source of the hash key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ConsistentHashType {
    /// Value of the request header that `header` names.
    Header,
    /// Value of the cookie that `cookie` names.
    Cookie,
    /// IP address of the client. `clientIPDetection` of the listener applies.
    SourceIP,
}

/// Request header whose value is the hash key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashHeader {
    /// Name of the header, in any case.
    pub name: String,
}

/// Cookie whose value is the hash key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashCookie {
    /// Name of the cookie, case-sensitive.
    pub name: String,
}

/// Preference for endpoints in the zone of this instance. It has no effect without `--zone`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ZoneAware {
    /// Enforce prefers the zone of this instance. Off spreads requests over all zones. Default
    /// Enforce.
    pub mode: Option<ZoneMode>,
    /// Minimum number of endpoints in the zone of this instance. With fewer, requests are
    /// spread over all zones. Default 1.
    pub min_endpoints_in_zone_threshold: Option<u32>,
}

/// Whether endpoints in the zone of this instance are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ZoneMode {
    /// Endpoints in the same zone are preferred while they have enough capacity.
    Enforce,
    /// Requests are spread over the endpoints of all zones.
    Off,
}

//! The format of rate limits: token buckets, selectors, and the cost of a request.
//!
//! The keys follow Envoy Gateway's rate limits. This module does not know the fill of any
//! bucket.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{mode::ModeSetting, path_match::PathMatch, units::PolicyDuration};

/// Rate limits of requests. A request over a limit receives 429.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitSection {
    /// Whether the limits are enforced. Shadow only counts the requests that would be rejected.
    /// A rule can override it; Off disables all rules. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of keys with a bucket of their own, per rule, at least 1. All further
    /// keys share one bucket. Default 10000.
    pub max_keys: Option<u32>,
    /// Headers about the nearest limit, on every response that a limit applies to. Default
    /// Draft10.
    pub rate_limit_headers: Option<RateLimitHeaders>,
    /// Limits that this sidecar enforces by itself.
    pub local: Option<LocalRateLimit>,
    /// Limits that all instances of the service share. `globalRateLimit` configures the engine.
    pub global: Option<GlobalRateLimitRules>,
}

/// Response headers about a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum RateLimitHeaders {
    /// No headers, except `retry-after` on a rejection.
    Off,
    /// `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset`
    /// (draft-ietf-httpapi-ratelimit-headers-03), as Envoy sends them.
    DraftVersion03,
    /// `ratelimit-policy` and `ratelimit` (draft-ietf-httpapi-ratelimit-headers-10).
    #[default]
    Draft10,
}

/// Writes the name that policies use.
impl fmt::Display for RateLimitHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "Off",
            Self::DraftVersion03 => "DraftVersion03",
            Self::Draft10 => "Draft10",
        })
    }
}

/// Limits that this sidecar enforces by itself.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalRateLimit {
    /// Rules of this sidecar. Rules with one bucket per key are checked first. Otherwise, the
    /// order in the file applies.
    pub rules: Vec<RateLimitRule>,
}

/// Limits that all instances of the service share.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GlobalRateLimitRules {
    /// Rules of all instances. They are checked after the local rules.
    pub rules: Vec<RateLimitRule>,
}

/// One token bucket, or one bucket for each value of a key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitRule {
    /// Name of the rule, unique in its section.
    pub name: String,
    /// Whether this rule is enforced. Default the mode of the section.
    pub mode: Option<ModeSetting>,
    /// Requests to which the rule applies. One matching selector suffices. Without selectors,
    /// the rule applies to all requests.
    #[serde(default)]
    pub client_selectors: Vec<ClientSelector>,
    /// Rate and capacity of the bucket.
    pub limit: RateLimitValue,
    /// Tokens that one request costs. Default 1.
    pub cost: Option<RateLimitCost>,
    /// Paces requests: a request waits for its tokens instead of being rejected at once.
    /// Default no wait.
    pub queue: Option<PaceQueue>,
    /// Starts at a part of the rate and ramps up, also after a time of low traffic. Allowed
    /// only for a local rule with a single bucket.
    pub warm_up: Option<RateWarmUpSection>,
}

/// Wait of a request for its tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PaceQueue {
    /// Maximum wait of a request, above 0s and at most 500ms. A request that would wait longer
    /// is rejected immediately.
    pub max_wait: PolicyDuration,
}

/// Ramp-up of a rate (Sentinel's warm-up). A request costs `coldFactor` times its tokens at
/// first. The factor falls linearly to 1.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateWarmUpSection {
    /// Time of the ramp-up under full load, at least 1s. Default 10s.
    pub window: Option<PolicyDuration>,
    /// Divisor of the initial rate, at least 2: with 3, the rate starts at one third. Default
    /// 3.
    pub cold_factor: Option<u32>,
}

/// Conditions on a request. All conditions that are set must match, and at least one is set.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientSelector {
    /// Conditions on request headers, all of which must match.
    pub headers: Vec<HeaderSelector>,
    /// Condition on the path of the request.
    pub path: Option<PathMatch>,
    /// Methods of the request, of which one must match. Default any method.
    pub methods: Vec<MethodSelector>,
    /// Address range of the client. The address is that of the connection, or the one that
    /// trusted proxies report (`clientIPDetection` of the listener).
    #[serde(rename = "sourceCIDR")]
    pub source_cidr: Option<SourceSelector>,
    /// Identity in the certificate of the client.
    pub identity: Option<IdentitySelector>,
}

/// Condition on a request header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderSelector {
    /// Name of the header, in any case.
    pub name: String,
    /// Exact compares the value. Distinct matches every value and creates one bucket per value.
    /// Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
    /// Value of the header. Required with Exact; not allowed with Distinct.
    pub value: Option<String>,
}

/// Method of a request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MethodSelector {
    /// Name of the method in capitals, like `POST`.
    pub value: String,
}

/// How a selector matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum SelectorType {
    /// Matches requests with the value that is set. They share one bucket.
    #[default]
    Exact,
    /// Matches requests with any value, with one bucket per value.
    Distinct,
}

/// Condition on the identity in the certificate of a client: a SPIFFE URI or a DNS name.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentitySelector {
    /// Exact compares the identity. Distinct matches every identity and creates one bucket per
    /// identity. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
    /// Identity as it is in the certificate. Required with Exact; not allowed with Distinct.
    pub value: Option<String>,
}

/// Condition on the address of a client.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSelector {
    /// Address range, like `10.0.0.0/8`.
    pub value: String,
    /// Exact has one bucket for the whole range. Distinct creates one bucket per address.
    /// Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
}

/// Rate and capacity of a token bucket.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitValue {
    /// Tokens that are refilled per `unit`, at least 1 and at most about ten million per
    /// second.
    pub requests: u32,
    /// Unit of time of the rate.
    pub unit: LimitUnit,
    /// Capacity of the bucket in tokens, at least 1. A bucket starts full. Default `requests`.
    pub burst: Option<u32>,
}

/// Unit of time of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LimitUnit {
    /// The rate is per second.
    Second,
    /// The rate is per minute, which is 60 s.
    Minute,
    /// The rate is per hour, which is 3600 s.
    Hour,
    /// The rate is per day, which is 86400 s.
    Day,
}

/// Tokens that one request costs.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitCost {
    /// Tokens that are charged when the request arrives. Default 1.
    pub request: Option<RequestCost>,
    /// Tokens that are charged when the response states its cost. They are charged even if the
    /// bucket is empty. The debt is at most the capacity. Default none.
    pub response: Option<ResponseCost>,
}

/// Tokens that one request costs when it arrives.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestCost {
    /// Source of the number.
    pub from: RequestCostFrom,
    /// Number of tokens, at most `burst`. 0 is allowed only with a `response` cost. The request
    /// is then admitted while the bucket is not in debt.
    pub number: u32,
}

/// Source of the cost of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RequestCostFrom {
    /// The fixed number in `number`.
    Number,
}

/// Tokens that one request costs when its response arrives.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseCost {
    /// Source of the number.
    pub from: ResponseCostFrom,
    /// Name of the response header that holds the cost, a whole number of tokens. Any other
    /// value costs nothing, and a metric counts it.
    pub header: String,
}

/// Source of the cost of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ResponseCostFrom {
    /// The value of the response header in `header`.
    Header,
}

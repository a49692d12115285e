//! How many requests may come; spelled as Envoy Gateway's rate limits.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{ModeSetting, PathMatch},
    units::PolicyDuration,
};

/// How many requests may come.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitSection {
    /// Whether it acts; a rule can say otherwise for itself.
    pub mode: ModeSetting,
    /// Distinct keys that are told apart per rule; the rest share one bucket. Default 10000.
    pub max_keys: Option<u32>,
    /// Headers about the limit that is nearest, on every answer. Default Draft10.
    pub rate_limit_headers: Option<RateLimitHeaders>,
    /// Limits that this sidecar keeps by itself.
    pub local: Option<LocalRateLimit>,
    /// Limits that all instances of the service keep together; `globalRateLimit` says how.
    pub global: Option<GlobalRateLimitRules>,
}

/// Headers about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum RateLimitHeaders {
    /// None but `retry-after`.
    Off,
    /// `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset` (draft-ietf-httpapi-ratelimit-headers-03), as Envoy sends
    /// them.
    DraftVersion03,
    /// `ratelimit-policy` and `ratelimit` (draft-ietf-httpapi-ratelimit-headers-10).
    #[default]
    Draft10,
}

/// Limits that this sidecar keeps by itself.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalRateLimit {
    /// The rules, asked in this order; those with a key before those without.
    pub rules: Vec<RateLimitRule>,
}

/// Limits that all instances of the service keep together.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GlobalRateLimitRules {
    /// The rules, asked after those of this instance.
    pub rules: Vec<RateLimitRule>,
}

/// One token bucket, or one per value of a key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitRule {
    /// The name, unique in its section.
    pub name: String,
    /// Whether it acts. Default that of the section.
    pub mode: Option<ModeSetting>,
    /// Which requests it is about; any one suffices, and none means all.
    #[serde(default)]
    pub client_selectors: Vec<ClientSelector>,
    /// The bucket.
    pub limit: RateLimitValue,
    /// What one request takes. Default 1.
    pub cost: Option<RateLimitCost>,
    /// Lets a request wait for its tokens instead of refusing it: a pace.
    pub queue: Option<PaceQueue>,
    /// Begins with a part of the rate, and again after a time with little traffic. Only for a rule with one bucket of
    /// this instance.
    pub warm_up: Option<RateWarmUpSection>,
}

/// A wait for tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PaceQueue {
    /// How long a request may wait at most; one that would have to wait longer is refused at once. Up to 500ms.
    pub max_wait: PolicyDuration,
}

/// A rate that rises (Sentinel's warm-up: `coldFactor` times the cost at first, falling evenly to 1).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateWarmUpSection {
    /// How long it takes under full load. Default 10s.
    pub window: Option<PolicyDuration>,
    /// The rate begins at this part of itself. Default 3.
    pub cold_factor: Option<u32>,
}

/// A selection of requests; all that is given must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientSelector {
    /// Headers.
    pub headers: Vec<HeaderSelector>,
    /// The path.
    pub path: Option<PathMatch>,
    /// The methods, any of which suffices; none means any.
    pub methods: Vec<MethodSelector>,
    /// The client's address: that of the connection, or that which trusted proxies tell (`clientIPDetection` of the listener).
    #[serde(rename = "sourceCIDR")]
    pub source_cidr: Option<SourceSelector>,
    /// The identity in the client's certificate.
    pub identity: Option<IdentitySelector>,
}

/// A header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderSelector {
    /// Its name.
    pub name: String,
    /// Exact compares the value, Distinct makes one bucket per value. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
    /// For Exact.
    pub value: Option<String>,
}

/// A method.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MethodSelector {
    /// Its name, like `POST`.
    pub value: String,
}

/// How a selector selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum SelectorType {
    /// Requests with this value.
    #[default]
    Exact,
    /// All requests that have it, with one bucket per value.
    Distinct,
}

/// An identity in a client's certificate: a SPIFFE URI or a DNS name.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentitySelector {
    /// Exact compares the value, Distinct makes one bucket per identity. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
    /// For Exact.
    pub value: Option<String>,
}

/// A range of client addresses.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSelector {
    /// The range, like `10.0.0.0/8`.
    pub value: String,
    /// Exact shares one bucket, Distinct makes one per address. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: SelectorType,
}

/// A token bucket.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitValue {
    /// Tokens that come back in each `unit`.
    pub requests: u32,
    /// The unit.
    pub unit: LimitUnit,
    /// Tokens that the bucket holds, and begins with. Default `requests`.
    pub burst: Option<u32>,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LimitUnit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3600 s.
    Hour,
    /// 86400 s.
    Day,
}

/// What one request takes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitCost {
    /// When it comes in. Default 1.
    pub request: Option<RequestCost>,
    /// When its answer says what it was worth. It is taken in any case: a bucket may go into debt by as much as it holds.
    pub response: Option<ResponseCost>,
}

/// What one request takes when it comes in.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestCost {
    /// Where the number is from.
    pub from: RequestCostFrom,
    /// The number. 0 only beside a `response`: then a request passes as long as the bucket is not in debt.
    pub number: u32,
}

/// Where a cost is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RequestCostFrom {
    /// From `number`.
    Number,
}

/// What one request takes when it is answered.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseCost {
    /// Where the number is from.
    pub from: ResponseCostFrom,
    /// The name of the header, whose value is a whole number; anything else is worth nothing, and counted.
    pub header: String,
}

/// Where the cost of an answer is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ResponseCostFrom {
    /// From `header`.
    Header,
}

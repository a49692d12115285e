//! Which requests go where; spelled as Gateway API's HTTPRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{
        AdmissionControlSection, AllowedIdentities, AuxiliaryBackendRef, Fallback, FaultInjection,
        Hedging, RateLimitSection, StaleIfError,
        sections::{CircuitBreaker, ConnectionLimits, Retry, RetryConstraint, Sections, Timeouts},
    },
    units::Percent,
};

/// A set of requests, where they go, and how they are protected.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteEntry {
    /// The name, unique among routes.
    pub name: String,
    /// The listeners whose requests are looked at.
    pub listeners: Vec<String>,
    /// Host names, exact or like `*.shop`; none means any.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// What a request must look like; any one of them suffices, and none means any request.
    #[serde(default)]
    pub matches: Vec<RouteMatch>,
    /// Changes to the request and its answer.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where matching requests go, by weight. None only with a redirect.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Who may use it, by the certificate that they show. Default everybody.
    pub allow: Option<AllowedIdentities>,
    /// The named policy of this route.
    pub policy: Option<String>,
    /// Timeouts of this route.
    pub timeouts: Option<Timeouts>,
    /// Retries of this route.
    pub retry: Option<Retry>,
    /// The retry budget of this route.
    pub retry_constraint: Option<RetryConstraint>,
    /// The circuit breaker of this route.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How many requests are refused while a backend fails.
    pub admission_control: Option<AdmissionControlSection>,
    /// The limits on what is in flight of this route.
    pub connection_limits: Option<ConnectionLimits>,
    /// The rate limits of this route.
    pub rate_limit: Option<RateLimitSection>,
    /// Further requests for an answer that is late.
    pub hedging: Option<Hedging>,
    /// What is answered instead.
    pub fallback: Option<Fallback>,
    /// Answers that are given again when the backend fails.
    pub stale_if_error: Option<StaleIfError>,
    /// Faults on purpose.
    pub fault_injection: Option<FaultInjection>,
}

impl RouteEntry {
    /// The sections that the route itself gives.
    #[must_use]
    pub fn sections(&self) -> Sections {
        Sections {
            timeouts: self.timeouts.clone(),
            retry: self.retry.clone(),
            retry_constraint: self.retry_constraint.clone(),
            circuit_breaker: self.circuit_breaker.clone(),
            admission_control: self.admission_control.clone(),
            connection_limits: self.connection_limits.clone(),
            rate_limit: self.rate_limit.clone(),
            hedging: self.hedging.clone(),
            fallback: self.fallback.clone(),
            stale_if_error: self.stale_if_error.clone(),
        }
    }
}

/// What a request must look like; all that is given must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// The method.
    pub method: Option<String>,
    /// Headers, all of which must match.
    pub headers: Vec<HeaderMatch>,
}

/// A path.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How it is compared. Default PathPrefix.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// What with.
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The same.
    Exact,
    /// The same in its first elements: `/v1` is a prefix of `/v1/a` and not of `/v10`.
    #[default]
    PathPrefix,
    /// Matched as a whole by a regular expression.
    RegularExpression,
}

/// A header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How it is compared. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    /// Its name.
    pub name: String,
    /// What with.
    pub value: String,
}

/// How a header is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// The same.
    #[default]
    Exact,
    /// Matched as a whole by a regular expression.
    RegularExpression,
}

/// Where requests go.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// The backend.
    pub name: String,
    /// Its share. Default 1.
    pub weight: Option<u32>,
}

/// A change to the request or its answer; the field named like the type says which.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// What is changed.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// For RequestHeaderModifier.
    pub request_header_modifier: Option<HeaderModifier>,
    /// For ResponseHeaderModifier.
    pub response_header_modifier: Option<HeaderModifier>,
    /// For URLRewrite.
    pub url_rewrite: Option<UrlRewrite>,
    /// For RequestRedirect.
    pub request_redirect: Option<Redirect>,
    /// For RequestMirror.
    pub request_mirror: Option<RequestMirror>,
}

/// What a filter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FilterType {
    /// Headers of the request.
    RequestHeaderModifier,
    /// Headers of the answer.
    ResponseHeaderModifier,
    /// Host and path of the request.
    URLRewrite,
    /// Answers with a redirect.
    RequestRedirect,
    /// Sends a copy to another backend.
    RequestMirror,
}

/// A copy of some requests for another backend, whose answer nobody waits for. A request whose body is longer than `retry.maxBufferedBody`, or
/// not through when its answer begins, is not copied. Of a route's copies to one backend 128 are out at once, each for at most a minute.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where it goes, under that backend's own policy.
    pub backend_ref: AuxiliaryBackendRef,
    /// The share of requests. Default 100.
    pub percent: Option<Percent>,
}

/// Changes to headers: first `remove`, then `set`, then `add`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderModifier {
    /// Headers that replace those of the same name.
    pub set: Vec<HttpHeader>,
    /// Headers that are added.
    pub add: Vec<HttpHeader>,
    /// Names that are taken out.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A change of host and path.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UrlRewrite {
    /// The new host.
    pub hostname: Option<String>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// A change of path.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathRewrite {
    /// What is replaced.
    #[serde(rename = "type")]
    pub kind: PathRewriteType,
    /// For ReplaceFullPath.
    pub replace_full_path: Option<String>,
    /// For ReplacePrefixMatch; the route must match by a prefix.
    pub replace_prefix_match: Option<String>,
}

/// What of a path is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PathRewriteType {
    /// All of it.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// A redirect.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`. Default that of the request.
    pub scheme: Option<String>,
    /// The host. Default that of the request.
    pub hostname: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. Default 302.
    pub status_code: Option<u16>,
    /// The path. Default that of the request.
    pub path: Option<PathRewrite>,
}

//! The policy file as its author writes it.
//!
//! These types mirror the text of a policy file and check only its shape. A missing value is
//! `None`, and a reference is a name. `compile` applies defaults, resolves names and checks
//! values. This module does not know what a value means.
//!
//! The types are the single definition of the file format. The JSON Schema is derived from
//! them, so each documentation comment here becomes the help text that an editor shows.
//!
//! Unknown keys are rejected. The types use no `flatten`, no untagged enums and no internally
//! tagged enums, because errors inside of those would have no position.

mod backend;
mod balancer;
mod global_rate_limit;
mod health;
mod lifecycle;
mod listener;
mod protection;
mod recovery;
mod route;
mod telemetry;
mod tls;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub use crate::policy::{
    document::{
        backend::{BackendEntry, BackendProtocol, Dns, DnsType, EndpointEntry, EndpointFields},
        balancer::{
            ConsistentHash, ConsistentHashType, HashCookie, HashHeader, LoadBalancer,
            LoadBalancerType, SlowStart, ZoneAware, ZoneMode,
        },
        global_rate_limit::{
            GlobalRateLimit, GlobalRateLimitEngine, GlobalRateLimitEngineType, RateLimitService,
            RedisSection, ReplicasSection,
        },
        health::{
            ActiveCheck, ActiveCheckType, GrpcCheck, HealthCheck, HttpCheck, OutlierDetection,
        },
        lifecycle::{AppProbesSection, DrainSection, InstanceWarmUp, LifecycleSection, Startup},
        listener::{
            ClientIpDetection, Direction, Listener, ListenerLimits, ListenerProtocol,
            TrustedForwardedFor,
        },
        protection::{LoadShedding, ProtectionSection, ProtectionSignals, SignalLevels},
        recovery::{
            RecoveryActionSection, RecoveryActionType, RecoveryEntry, RecoveryRung,
            RecoveryTrigger, RecoveryTriggerType, UndoCondition,
        },
        route::{
            BackendRef, Filter, FilterType, HeaderMatch, HeaderMatchType, HeaderModifier,
            HttpHeader, PathRewrite, PathRewriteType, Redirect, RequestMirror, RouteEntry,
            RouteMatch, UrlRewrite,
        },
        telemetry::{AccessLogFormat, AccessLogSection, TelemetrySection},
        tls::{AllowedIdentities, BackendTls, ClientAuth, ListenerTls},
    },
    mode::ModeSetting,
    path_match::{PathMatch, PathMatchType},
    sections::{
        Sections, circuit_breaker::BreakerScope, fallback::FallbackTrigger,
        rate_limit::document::RateLimitHeaders,
    },
};

/// One document of a policy directory.
///
/// A file may hold several documents. Names of listeners, backends, routes and policies are
/// global to all documents of the directory.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// Version of the policy format.
    pub api_version: ApiVersion,
    /// Kind of the document. The only kind is ResiliencePolicy.
    pub kind: DocumentKind,
    /// Metadata of the document, which holds its name.
    pub metadata: DocumentMetadata,
    /// Content of the document. Default empty.
    #[serde(default)]
    pub spec: DocumentSpec,
}

/// Version of the policy format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// First version of the format, which may still change incompatibly.
    #[serde(rename = "outrigger.dev/v1alpha1")]
    V1Alpha1,
}

/// Kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum DocumentKind {
    /// Listeners, backends, routes and the policies that protect them.
    ResiliencePolicy,
}

/// Metadata of a document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DocumentMetadata {
    /// Name of the document, unique in the directory. Names have up to 63 lower-case letters,
    /// digits, `-` and `.`. This name is the default of `redis.prefix` and
    /// `rateLimitService.domain`.
    pub name: String,
}

/// Content of a document. The sidecar merges the lists of all documents of a directory.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DocumentSpec {
    /// Sockets that accept requests. A directory has at least one listener.
    pub listeners: Vec<Listener>,
    /// Named groups of endpoints to which requests are sent.
    pub backends: Vec<BackendEntry>,
    /// Sections that apply if the route, its policy and the backend's policy do not set them. A
    /// directory has at most one `defaults`.
    pub defaults: Option<Sections>,
    /// Named groups of sections. Routes and backends refer to them with `policy`.
    pub policies: BTreeMap<String, Sections>,
    /// Rules that send requests to backends. Precedence follows the Gateway API; the order in
    /// the file has no effect.
    pub routes: Vec<RouteEntry>,
    /// Startup, readiness, warm-up and drain of this instance. A directory has at most one
    /// `lifecycle`.
    pub lifecycle: Option<LifecycleSection>,
    /// Actions that the sidecar takes while a problem persists.
    pub recovery: Vec<RecoveryEntry>,
    /// Engine for the rate limits that all instances share. A directory has at most one
    /// `globalRateLimit`.
    pub global_rate_limit: Option<GlobalRateLimit>,
    /// Load shedding while this instance is overloaded. A directory has at most one
    /// `protection`.
    pub protection: Option<ProtectionSection>,
    /// Access log of requests. A directory has at most one `telemetry`.
    pub telemetry: Option<TelemetrySection>,
}

/// Keys of the full policy format that this version does not support.
///
/// The schema check rejects such a key by name and never ignores it.
pub const UNSUPPORTED_KEYS: &[&str] = &[
    "rollouts",
    "lanes",
    "alerts",
    "notifications",
    "verify",
    "tracing",
    "session",
];

/// Returns the JSON Schema (draft 2020-12) of one document, derived from the types that read
/// it.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Document);
    schema.insert("title".into(), "Outrigger resilience policy".into());
    schema.to_value()
}

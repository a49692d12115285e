//! The policy file as it is written.
//!
//! These types mirror the text and know nothing of its meaning: what is absent is `None`, references are names, and nothing is
//! checked beyond the shape. Meaning is made in `compile`. They are the only place of the file's spelling, its JSON Schema is
//! derived from them, and every comment here becomes the help text that an editor shows.
//!
//! Shape rules: unknown keys are refused; no `flatten`, no untagged and no internally tagged enums, because with those a fault
//! would lose its position.

mod admission;
mod backend;
mod balancer;
mod degradation;
mod fault_injection;
mod global_rate_limit;
mod health;
mod hedging;
mod lifecycle;
mod listener;
mod process;
mod protection;
mod rate_limit;
mod route;
mod sections;
mod tls;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub use crate::policy::document::{
    admission::AdmissionControlSection,
    backend::{BackendEntry, BackendProtocol, Dns, DnsType, EndpointEntry, EndpointFields},
    balancer::{
        ConsistentHash, ConsistentHashType, HashCookie, HashHeader, LoadBalancer, LoadBalancerType,
        SlowStart, ZoneAware, ZoneMode,
    },
    degradation::{AuxiliaryBackendRef, Fallback, FallbackResponse, FallbackTrigger, StaleIfError},
    fault_injection::{FaultAbort, FaultDelay, FaultInjection},
    global_rate_limit::{
        GlobalRateLimit, GlobalRateLimitEngine, GlobalRateLimitEngineType, RateLimitService,
        RedisSection, ReplicasSection,
    },
    health::{ActiveCheck, ActiveCheckType, GrpcCheck, HealthCheck, HttpCheck, OutlierDetection},
    hedging::Hedging,
    lifecycle::{AppProbesSection, DrainSection, InstanceWarmUp, LifecycleSection, Startup},
    listener::{
        ClientIpDetection, Direction, Listener, ListenerLimits, ListenerProtocol,
        TrustedForwardedFor,
    },
    process::{
        AccessLogFormat, AccessLogSection, RecoveryActionSection, RecoveryActionType,
        RecoveryEntry, RecoveryRung, RecoveryTrigger, RecoveryTriggerType, TelemetrySection,
        UndoCondition,
    },
    protection::{LoadShedding, ProtectionSection, ProtectionSignals, SignalLevels},
    rate_limit::{
        ClientSelector, GlobalRateLimitRules, HeaderSelector, IdentitySelector, LimitUnit,
        LocalRateLimit, MethodSelector, PaceQueue, RateLimitCost, RateLimitHeaders, RateLimitRule,
        RateLimitSection, RateLimitValue, RateWarmUpSection, RequestCost, RequestCostFrom,
        ResponseCost, ResponseCostFrom, SelectorType, SourceSelector,
    },
    route::{
        BackendRef, Filter, FilterType, HeaderMatch, HeaderMatchType, HeaderModifier, HttpHeader,
        PathMatch, PathMatchType, PathRewrite, PathRewriteType, Redirect, RequestMirror,
        RouteEntry, RouteMatch, UrlRewrite,
    },
    sections::{
        AdaptiveAlgorithm, AdaptiveConcurrency, BreakerScope, CircuitBreaker, ConnectionLimits,
        GrpcCode, ModeSetting, Retry, RetryBudgetSection, RetryConstraint, RetryRate, RetryTrigger,
        Sections, Timeouts,
    },
    tls::{AllowedIdentities, BackendTls, ClientAuth, ListenerTls},
};

/// One document of a policy directory. Names are global over all documents.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// The version of this format.
    pub api_version: ApiVersion,
    /// What the document is.
    pub kind: DocumentKind,
    /// Its name.
    pub metadata: DocumentMetadata,
    /// What it says.
    #[serde(default)]
    pub spec: DocumentSpec,
}

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first, still free to change.
    #[serde(rename = "outrigger.dev/v1alpha1")]
    V1Alpha1,
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum DocumentKind {
    /// Listeners, backends, routes and the policies that protect them.
    ResiliencePolicy,
}

/// The name of a document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DocumentMetadata {
    /// The name, unique in the directory.
    pub name: String,
}

/// What a document says. All lists of all documents of a directory are taken together.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DocumentSpec {
    /// Where requests come in.
    pub listeners: Vec<Listener>,
    /// Where requests go to.
    pub backends: Vec<BackendEntry>,
    /// Sections for every route that says nothing nearer. At most once in a directory.
    pub defaults: Option<Sections>,
    /// Named sections, to be referred to by `policy`.
    pub policies: BTreeMap<String, Sections>,
    /// Which requests go where; precedence as in Gateway API, not by order.
    pub routes: Vec<RouteEntry>,
    /// How this instance comes and goes. At most once in a directory.
    pub lifecycle: Option<LifecycleSection>,
    /// What to do about trouble that stays.
    pub recovery: Vec<RecoveryEntry>,
    /// Who keeps the limits that all instances share. At most once in a directory.
    pub global_rate_limit: Option<GlobalRateLimit>,
    /// How this instance protects itself. At most once in a directory.
    pub protection: Option<ProtectionSection>,
    /// What is written down about requests. At most once in a directory.
    pub telemetry: Option<TelemetrySection>,
}

/// Sections of the full policy format that this version does not build yet. They are refused by name, never ignored.
pub const UNSUPPORTED_KEYS: &[&str] = &[
    "rollouts",
    "lanes",
    "alerts",
    "notifications",
    "verify",
    "tracing",
    "session",
];

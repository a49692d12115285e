//! A compiled set of policies: immutable, complete, and impossible to get wrong.
//!
//! Every default is filled in, every reference is an index, every section has been inherited from wherever it is nearest, and
//! remembers from where. A request pins one snapshot and sees it to its end.

mod backend;
mod degradation;
mod global_rate_limit;
mod lifecycle;
mod protection;
mod rate_limit;
mod tls;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

pub use crate::policy::snapshot::{
    backend::{
        ActiveCheckSpec, BackendSpec, Discovery, DnsSpec, EndpointAddress, EndpointSpec, HashKey,
        InvalidEndpointAddress, LoadBalancerSpec, OutlierDetectionSpec, ProbeSpec,
    },
    degradation::{
        FallbackAction, FallbackSpec, FaultAbortStatus, FaultInjectionSpec, HedgingSpec,
        MirrorSpec, StaleIfErrorSpec,
    },
    global_rate_limit::{
        GlobalRateLimitSpec, RateLimitEngineSpec, RateLimitServiceSpec, RedisSpec, RemoteEngineSpec,
    },
    lifecycle::{AppProbesSpec, InstanceWarmUpSpec, LifecycleSpec},
    protection::ProtectionSpec,
    rate_limit::{QuotaSpec, RateLimitRuleSpec, RateLimitSpec, RateWarmUpSpec, SelectorSpec},
    tls::{BackendTlsSpec, IdentityFiles, ListenerTlsSpec, Protocol, SourceLocation},
};
use crate::{
    policy::{
        document::{BreakerScope, Direction},
        matching::RouteRule,
        units::StatusSet,
    },
    resilience::{
        Mode, adaptive::AdaptiveConfig, admission::AdmissionConfig, breaker::BreakerConfig,
        concurrency::ConcurrencyConfig, recovery::RecoveryConfig, retry::RetryConfig,
        retry_budget::RetryBudgetConfig,
    },
};

/// A compiled set of policies.
#[derive(Debug, Clone)]
pub struct PolicySnapshot {
    /// The hash of the files it was made of.
    pub hash: String,
    /// Where requests come in.
    pub listeners: Vec<ListenerSpec>,
    /// Where requests go to.
    pub backends: Vec<BackendSpec>,
    /// Which go where.
    pub routes: Vec<RouteSpec>,
    /// For each listener, its rules in the order of their precedence.
    pub rules_by_listener: Vec<Vec<RouteRule>>,
    /// How this instance comes and goes.
    pub lifecycle: LifecycleSpec,
    /// What is done about trouble that stays.
    pub recoveries: Vec<RecoverySpec>,
    /// Who keeps the limits of the whole service.
    pub global_rate_limit: Option<GlobalRateLimitSpec>,
    /// How this instance protects itself.
    pub protection: Option<ProtectionSpec>,
    /// What is written down about requests.
    pub access_log: AccessLogSpec,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Which way requests go.
    pub direction: Direction,
    /// Where it is bound.
    pub address: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// TLS towards clients.
    pub tls: Option<ListenerTlsSpec>,
    /// What a client may use up.
    pub limits: ListenerLimitSpec,
    /// Proxies whose word about their clients is taken.
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// What a client may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimitSpec {
    /// Connections at once.
    pub max_connections: u32,
    /// The time for the request head.
    pub header_timeout: Duration,
    /// The time between requests.
    pub idle_timeout: Duration,
    /// The longest request head.
    pub max_header_bytes: usize,
    /// Requests at once on one connection of HTTP/2.
    pub max_concurrent_streams: u32,
    /// The longest request body.
    pub max_body_bytes: u64,
}

/// A route.
#[derive(Debug, Clone)]
pub struct RouteSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Which way its requests go.
    pub direction: Direction,
    /// Changes to request and answer.
    pub filters: FilterSpec,
    /// The identities that may use it, if not everybody may.
    pub allowed_identities: Option<Vec<Arc<str>>>,
    /// What is done with a request.
    pub action: RouteActionSpec,
    /// The rate limits.
    pub rate_limits: RateLimitSpec,
    /// Faults on purpose.
    pub fault_injection: Option<FaultInjectionSpec>,
    /// Who gets copies.
    pub mirrors: Vec<MirrorSpec>,
    /// Backends that are asked beside the others: those of fallbacks and mirrors, each once.
    pub auxiliary_backends: Vec<Destination>,
}

/// What is done with a request.
#[derive(Debug, Clone)]
pub enum RouteActionSpec {
    /// It goes to one of these.
    Forward(Vec<Destination>),
    /// It is answered with a redirect.
    Redirect(RedirectSpec),
}

/// A backend of a route, and the policy that holds between the two.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The index of the backend.
    pub backend: usize,
    /// Its share.
    pub weight: u32,
    /// The effective policy.
    pub policy: Arc<PolicySpec>,
}

/// Changes to request and answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// Headers of the request.
    pub request_headers: HeaderModifierSpec,
    /// Headers of the answer.
    pub response_headers: HeaderModifierSpec,
    /// The new host.
    pub host_rewrite: Option<String>,
    /// The new path.
    pub path_rewrite: Option<PathRewriteSpec>,
}

/// Changes to headers, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderModifierSpec {
    /// Taken out.
    pub remove: Vec<http::HeaderName>,
    /// Replaced.
    pub set: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Added.
    pub add: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// A change of path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewriteSpec {
    /// All of it.
    Full(String),
    /// The prefix that matched.
    Prefix(String),
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectSpec {
    /// The status.
    pub status: u16,
    /// The scheme, if it changes.
    pub scheme: Option<String>,
    /// The host, if it changes.
    pub host: Option<String>,
    /// The port, if it is given.
    pub port: Option<u16>,
    /// The path, if it changes.
    pub path: Option<PathRewriteSpec>,
}

/// Where a section is from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum SectionOrigin {
    /// The route itself.
    Route(Arc<str>),
    /// The route's named policy.
    RoutePolicy(Arc<str>),
    /// The backend's named policy.
    BackendPolicy(Arc<str>),
    /// The defaults of the directory.
    Defaults,
    /// Outrigger's own defaults.
    #[default]
    BuiltIn,
}

impl fmt::Display for SectionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(name) => write!(f, "route:{name}"),
            Self::RoutePolicy(name) | Self::BackendPolicy(name) => write!(f, "policy:{name}"),
            Self::Defaults => f.write_str("defaults"),
            Self::BuiltIn => f.write_str("built-in"),
        }
    }
}

impl SectionOrigin {
    /// The name of a state that belongs to a backend: the backend's own name where the section is its own or everybody's, and
    /// a name apart where a route brought a section with it.
    #[must_use]
    pub fn state_name(&self, backend: &str) -> Arc<str> {
        match self {
            Self::Route(_) | Self::RoutePolicy(_) => format!("{backend}@{self}").into(),
            Self::BackendPolicy(_) | Self::Defaults | Self::BuiltIn => backend.into(),
        }
    }
}

/// The effective policy between a route and a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySpec {
    /// How long things may take.
    pub timeouts: TimeoutSpec,
    /// What is tried again.
    pub retry: RetrySpec,
    /// How many retries the backend is asked to take.
    pub retry_budget: RetryBudgetSpec,
    /// When it is no longer asked.
    pub breaker: Option<BreakerSpec>,
    /// How many requests are refused while it fails.
    pub admission_control: Option<AdmissionControlSpec>,
    /// How much may be in flight.
    pub connection_limits: Option<ConnectionLimitsSpec>,
    /// Further requests for an answer that is late.
    pub hedging: Option<HedgingSpec>,
    /// What is answered instead.
    pub fallback: Option<FallbackSpec>,
    /// Answers that are given again when it fails.
    pub stale_if_error: Option<StaleIfErrorSpec>,
}

/// How long things may take; `None` is for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutSpec {
    /// The whole request.
    pub request: Option<Duration>,
    /// One attempt.
    pub backend_request: Option<Duration>,
    /// Making a connection.
    pub connect: Option<Duration>,
    /// Silence in a body or tunnel.
    pub stream_idle: Option<Duration>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// What is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySpec {
    /// Whether it acts.
    pub mode: Mode,
    /// How.
    pub config: RetryConfig,
    /// Which statuses.
    pub codes: StatusSet,
    /// Which statuses of gRPC, as a bit for each.
    pub grpc_codes: u32,
    /// The longest body that is kept.
    pub max_buffered_body_bytes: usize,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// How many retries a backend is asked to take.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudgetSpec {
    /// The numbers.
    pub config: RetryBudgetConfig,
    /// The name of its state.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// What one watches.
    pub scope: BreakerScope,
    /// How.
    pub config: BreakerConfig,
    /// A call that takes longer than this is slow. It is of the route and not of the breaker, which several routes may share.
    pub slow_call_duration_threshold: Duration,
    /// Which statuses are failures.
    pub failure_codes: StatusSet,
    /// The name of its state; for the scope Endpoint the beginning of it.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// How many requests are refused while a backend fails.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmissionControlSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// How.
    pub config: AdmissionConfig,
    /// The name of its state.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// How much may be in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimitsSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// Requests in flight and waiting.
    pub concurrency: ConcurrencyConfig,
    /// How the bound moves below that, and whether that acts.
    pub adaptive: Option<(AdaptiveConfig, Mode)>,
    /// How long one may wait.
    pub pending_timeout: Duration,
    /// Connections at once.
    pub max_connections: u32,
    /// Connections to one endpoint at once.
    pub max_connections_per_endpoint: u32,
    /// Retries at once.
    pub max_parallel_retries: u32,
    /// The name of its state.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// What is done about trouble that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySpec {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it acts.
    pub mode: Mode,
    /// The backend whose breakers are watched.
    pub backend: Arc<str>,
    /// How long one must not have been closed.
    pub open_for: Duration,
    /// What is done, in this order.
    pub ladder: Vec<RecoveryAction>,
    /// How often.
    pub config: RecoveryConfig,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryAction {
    /// An address is called.
    Webhook {
        /// The address.
        url: http::Uri,
        /// How long it may take.
        timeout: Duration,
    },
    /// This instance is unready until the trouble is over.
    FailReadiness,
}

/// What is written down about requests.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogSpec {
    /// Whether at all.
    pub is_enabled: bool,
    /// The share of requests, in `0.0..=1.0`.
    pub sampling_ratio: f64,
    /// Statuses that are always written.
    pub always_logged_statuses: StatusSet,
}

//! The compiled form of a policy set, which the data plane reads.
//!
//! A snapshot is immutable and complete. Every default is filled in, and every reference is an
//! index. Every section is inherited from its nearest source, and records that source as its
//! origin. A request pins one snapshot for its whole duration, so a reload never changes the
//! policies of a request in flight.
//!
//! The snapshot holds configuration only. It does not know runtime state such as breaker counts
//! or the resolved endpoints.

mod backend;
mod global_rate_limit;
mod lifecycle;
mod protection;
mod tls;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

pub use crate::policy::snapshot::{
    backend::{
        ActiveCheckSpec, BackendSpec, Discovery, DnsSpec, EndpointAddress, EndpointSpec, HashKey,
        InvalidEndpointAddress, LoadBalancerSpec, OutlierDetectionSpec, ProbeSpec,
    },
    global_rate_limit::{
        GlobalRateLimitSpec, RateLimitEngineSpec, RateLimitServiceSpec, RedisSpec, RemoteEngineSpec,
    },
    lifecycle::{AppProbesSpec, InstanceWarmUpSpec, LifecycleSpec},
    protection::ProtectionSpec,
    tls::{BackendTlsSpec, IdentityFiles, ListenerTlsSpec, Protocol, SourceLocation},
};
use crate::{
    policy::{
        document::Direction,
        matching::route_table::RouteTable,
        sections::{
            PolicySpec, fault_injection::FaultInjectionSpec, rate_limit::spec::RateLimitSpec,
        },
        units::StatusSet,
    },
    resilience::{Mode, ratio::Ratio, recovery::RecoveryConfig},
};

/// A compiled policy set.
#[derive(Debug, Clone)]
pub struct PolicySnapshot {
    /// Hash of the policy files, as 16 hexadecimal digits.
    pub hash: String,
    /// Listeners that accept requests.
    pub listeners: Vec<ListenerSpec>,
    /// Backends that requests are sent to. Other parts refer to them by index.
    pub backends: Vec<BackendSpec>,
    /// Routes that map requests to backends or redirects.
    pub routes: Vec<RouteSpec>,
    /// Rules of each listener. The index is that of `listeners`.
    pub route_tables: Vec<RouteTable>,
    /// Startup, warm-up, probes and drain of this instance.
    pub lifecycle: LifecycleSpec,
    /// Actions for breakers that stay tripped.
    pub recoveries: Vec<RecoverySpec>,
    /// Engine that enforces rate limits across all instances, if one is configured.
    pub global_rate_limit: Option<GlobalRateLimitSpec>,
    /// Overload protection of this instance, if it is configured.
    pub protection: Option<ProtectionSpec>,
    /// Selection of the requests that are written to the access log.
    pub access_log: AccessLogSpec,
}

/// Configuration of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    /// Name of the listener, unique in the policy set.
    pub name: Arc<str>,
    /// Direction of its requests: inbound to the app, or outbound from it.
    pub direction: Direction,
    /// Address that the listener binds.
    pub address: SocketAddr,
    /// Protocols that the listener accepts.
    pub protocol: Protocol,
    /// TLS towards clients; without it, the listener accepts plain text.
    pub tls: Option<ListenerTlsSpec>,
    /// Limits on the resources that clients may use.
    pub limits: ListenerLimitSpec,
    /// Address ranges of proxies whose forwarded client addresses are trusted.
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// Limits on the resources that clients of a listener may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimitSpec {
    /// Maximum number of concurrent connections.
    pub max_connections: u32,
    /// Time within which a request head must arrive.
    pub header_timeout: Duration,
    /// Time without a request after which an idle connection is closed.
    pub idle_timeout: Duration,
    /// Maximum size of a request head, in bytes.
    pub max_header_bytes: usize,
    /// Maximum number of fields in a request head.
    pub max_headers: usize,
    /// Maximum number of concurrent HTTP/2 streams on a connection.
    pub max_concurrent_streams: u32,
    /// Maximum size of a request body, in bytes.
    pub max_body_bytes: u64,
}

/// Configuration of a route.
#[derive(Debug, Clone)]
pub struct RouteSpec {
    /// Name of the route, unique in the policy set.
    pub name: Arc<str>,
    /// Direction of its requests: inbound to the app, or outbound from it.
    pub direction: Direction,
    /// Changes to its requests and responses.
    pub filters: FilterSpec,
    /// Client identities that may use the route; `None` admits every client.
    pub allowed_identities: Option<Vec<Arc<str>>>,
    /// Action that handles a request of the route.
    pub action: RouteActionSpec,
    /// Rate limits of the route.
    pub rate_limits: RateLimitSpec,
    /// Faults that are injected into its requests, if any.
    pub fault_injection: Option<FaultInjectionSpec>,
    /// Backends that receive copies of its requests.
    pub mirrors: Vec<MirrorSpec>,
    /// Further backends that fallbacks and mirrors send requests to, each once.
    pub auxiliary_backends: Vec<Destination>,
}

/// Action that handles a request of a route.
#[derive(Debug, Clone)]
pub enum RouteActionSpec {
    /// The request is sent to one of these destinations, chosen by weight.
    Forward(Vec<Destination>),
    /// The sidecar responds with a redirect.
    Redirect(RedirectSpec),
}

/// A backend of a route, and the policy that applies to requests from the route to the backend.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Index of the backend in [`PolicySnapshot::backends`].
    pub backend: usize,
    /// Share of the requests, relative to the sum of the weights of the route.
    pub weight: u32,
    /// Effective policy, after inheritance.
    pub policy: Arc<PolicySpec>,
}

/// Changes to the requests and responses of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// Changes to request headers.
    pub request_headers: HeaderModifierSpec,
    /// Changes to response headers.
    pub response_headers: HeaderModifierSpec,
    /// Replacement of the request's host.
    pub host_rewrite: Option<String>,
    /// Replacement of the request's path.
    pub path_rewrite: Option<PathRewriteSpec>,
}

/// Changes to headers, applied in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderModifierSpec {
    /// Headers that are removed.
    pub remove: Vec<http::HeaderName>,
    /// Headers that are set, replacing their existing values.
    pub set: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Headers that are added to the existing values.
    pub add: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// Replacement of a request's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewriteSpec {
    /// Replaces the whole path.
    Full(String),
    /// Replaces the prefix that the route matched, and retains the rest of the path.
    Prefix(String),
}

/// Mirroring of requests: a backend receives copies, and its responses are discarded.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorSpec {
    /// Name of the backend that receives the copies.
    pub backend: Arc<str>,
    /// Share of the requests that are copied.
    pub share: Ratio,
}

impl fmt::Display for MirrorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % to {}", self.share.percent(), self.backend)
    }
}

/// Redirect that the sidecar responds with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectSpec {
    /// Status of the response: 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Scheme of the new location; `None` retains that of the request.
    pub scheme: Option<String>,
    /// Host of the new location; `None` retains that of the request.
    pub host: Option<String>,
    /// Port of the new location, if the policy gives one.
    pub port: Option<u16>,
    /// Path of the new location; `None` retains that of the request.
    pub path: Option<PathRewriteSpec>,
}

/// Actions that are taken when a breaker of a backend stays tripped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySpec {
    /// Name of the rule, unique in the policy set.
    pub name: Arc<str>,
    /// Whether the actions are taken, only logged, or off.
    pub mode: Mode,
    /// Name of the backend whose breakers are monitored.
    pub backend: Arc<str>,
    /// Time for which a breaker must not have been closed before the first action.
    pub open_for: Duration,
    /// Actions in the order in which they are taken.
    pub ladder: Vec<RecoveryAction>,
    /// Number of actions, the time between them, and their maximum number per hour.
    pub config: RecoveryConfig,
}

/// Action of a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryAction {
    /// An HTTP request is sent to a URL.
    Webhook {
        /// URL that the request is sent to.
        url: http::Uri,
        /// Maximum time of the call.
        timeout: Duration,
    },
    /// This instance reports unready until the breakers are closed.
    FailReadiness,
}

/// Selection of the requests that are written to the access log.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogSpec {
    /// Whether the access log is written.
    pub is_enabled: bool,
    /// Share of the requests that are logged, in `0.0..=1.0`.
    pub sampling_ratio: f64,
    /// Statuses whose requests are always logged.
    pub always_logged_statuses: StatusSet,
}

//! Compiled backends: discovery, load balancing and health of their endpoints.
//!
//! The types hold configuration only. They do not know which endpoints are currently resolved
//! or healthy.

use std::{
    fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc, time::Duration,
};

use crate::{
    policy::{
        snapshot::tls::{BackendTlsSpec, Protocol},
        units::{PolicyDuration, StatusSet},
    },
    resilience::{Mode, health::HealthConfig, outlier::OutlierConfig, warm_up::WarmUpConfig},
};

/// Configuration of a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendSpec {
    /// Name of the backend, unique in the policy set.
    pub name: Arc<str>,
    /// Source of its endpoints.
    pub discovery: Discovery,
    /// Protocol towards its endpoints.
    pub protocol: Protocol,
    /// TLS towards its endpoints; without it, connections are plain text.
    pub tls: Option<BackendTlsSpec>,
    /// Algorithm that selects an endpoint for a request.
    pub load_balancer: LoadBalancerSpec,
    /// Slow start of new endpoints, if configured.
    pub warm_up: Option<WarmUpConfig>,
    /// Minimum number of endpoints in this instance's zone for which they are preferred; `None`
    /// ignores zones.
    pub min_endpoints_in_zone: Option<u32>,
    /// Percentage of available endpoints below which availability is ignored, from 0 to 100.
    pub panic_threshold_percent: u32,
    /// Active health checks, if configured; without them, every endpoint counts as healthy.
    pub active_check: Option<ActiveCheckSpec>,
    /// Ejection of endpoints that fail or are slow, if configured.
    pub outlier_detection: Option<OutlierDetectionSpec>,
}

/// Source of the endpoints of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// The policy lists the endpoints.
    Static(Vec<EndpointSpec>),
    /// A file lists the endpoints, and is reloaded when it changes.
    File(PathBuf),
    /// A DNS name resolves to the endpoints.
    Dns(DnsSpec),
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(endpoints) => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{}", endpoint.address)?;
                }
                Ok(())
            }
            Self::File(path) => write!(f, "listed in {}", path.display()),
            Self::Dns(dns) => write!(
                f,
                "of {} in DNS, cached for {} to {}",
                dns.name,
                PolicyDuration(dns.min_ttl),
                PolicyDuration(dns.max_ttl)
            ),
        }
    }
}

/// DNS name that resolves to the endpoints of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSpec {
    /// Name that is resolved.
    pub name: String,
    /// Port of the endpoints. `None` resolves SRV records, which contain the ports.
    pub port: Option<u16>,
    /// Minimum time for which a resolution is cached.
    pub min_ttl: Duration,
    /// Maximum time for which a resolution is cached.
    pub max_ttl: Duration,
}

/// An endpoint as its source describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointSpec {
    /// Address that the endpoint listens on.
    pub address: EndpointAddress,
    /// Share of the requests, relative to the other endpoints.
    pub weight: NonZeroU32,
    /// Zone of the endpoint, if its source names one.
    pub zone: Option<Arc<str>>,
    /// Priority of the endpoint; 0 is preferred over higher numbers.
    pub priority: u32,
}

impl EndpointSpec {
    /// Creates an endpoint with weight 1, priority 0 and no zone.
    #[must_use]
    pub fn from_address(address: EndpointAddress) -> Self {
        Self {
            address,
            weight: NonZeroU32::MIN,
            zone: None,
            priority: 0,
        }
    }
}

/// Address that an endpoint listens on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// IP address and TCP port; the port is not 0.
    Tcp(SocketAddr),
    /// Absolute path of a Unix domain socket.
    Unix(Arc<str>),
}

/// Error for a text that is not the address of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidEndpointAddress;

impl fmt::Display for InvalidEndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an IP address and a port, nor `unix:` and the absolute path of a socket")
    }
}

impl std::error::Error for InvalidEndpointAddress {}

/// Maximum length of a socket path on Linux (`sun_path` in unix(7)), without its final zero byte.
const MAX_SOCKET_PATH_BYTES: usize = 107;

impl FromStr for EndpointAddress {
    type Err = InvalidEndpointAddress;

    fn from_str(text: &str) -> Result<Self, InvalidEndpointAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') && path.len() <= MAX_SOCKET_PATH_BYTES => {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err(InvalidEndpointAddress),
            None => text
                .parse()
                .ok()
                .filter(|address: &SocketAddr| address.port() != 0)
                .map(Self::Tcp)
                .ok_or(InvalidEndpointAddress),
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl From<SocketAddr> for EndpointAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// Algorithm that selects an endpoint for a request.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadBalancerSpec {
    /// Selects the endpoint with fewer requests in flight of two that are drawn at random.
    LeastRequest,
    /// Selects the endpoint with the lower latency cost of two that are drawn at random.
    PeakEwma,
    /// Selects the endpoints in turn, by weight.
    RoundRobin,
    /// Selects an endpoint at random, by weight.
    Random,
    /// Selects the endpoint that the hash of a request key maps to.
    ConsistentHash {
        /// Part of the request that is hashed.
        key: HashKey,
        /// Maximum load of an endpoint, as a multiple of its share; above 1.
        bound: f64,
    },
}

impl fmt::Display for LoadBalancerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastRequest => f.write_str("LeastRequest"),
            Self::PeakEwma => f.write_str("PeakEwma"),
            Self::RoundRobin => f.write_str("RoundRobin"),
            Self::Random => f.write_str("Random"),
            Self::ConsistentHash { key, bound } => {
                write!(f, "ConsistentHash of {key}, bound {bound}")
            }
        }
    }
}

/// Part of a request that consistent hashing uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// Value of this header.
    Header(http::HeaderName),
    /// Value of this cookie.
    Cookie(String),
    /// IP address of the client.
    ClientIp,
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "the header {name}"),
            Self::Cookie(name) => write!(f, "the cookie {name}"),
            Self::ClientIp => f.write_str("the client address"),
        }
    }
}

/// Configuration of active health checks.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveCheckSpec {
    /// Request that is sent to the endpoint.
    pub probe: ProbeSpec,
    /// Time between two checks of an endpoint.
    pub interval: Duration,
    /// Time between two checks while the endpoint is unhealthy.
    pub unhealthy_interval: Duration,
    /// Time to the next check after a result that contradicts the current health.
    pub edge_interval: Duration,
    /// Share by which each time is randomized around its value, in `0.0..=1.0`.
    pub jitter: f64,
    /// Maximum time of one check.
    pub timeout: Duration,
    /// Consecutive results that change the health.
    pub thresholds: HealthConfig,
}

impl ActiveCheckSpec {
    /// Returns the host header of an HTTP check, if the policy names one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.probe {
            ProbeSpec::Http { host, .. } => host.as_deref(),
            ProbeSpec::Tcp | ProbeSpec::Grpc { .. } => None,
        }
    }

    /// Returns the path of an HTTP check, or `None` for other checks.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match &self.probe {
            ProbeSpec::Http { path, .. } => Some(path),
            ProbeSpec::Tcp | ProbeSpec::Grpc { .. } => None,
        }
    }
}

/// Request that an active check sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeSpec {
    /// An HTTP GET request.
    Http {
        /// Path of the request.
        path: String,
        /// Host header; without one, it is the address of the endpoint.
        host: Option<String>,
        /// Statuses with which the check passes.
        expected: StatusSet,
        /// Text that the first 4 KiB of the body must contain.
        body: Option<String>,
    },
    /// A TCP connection, with its TLS handshake if the backend uses TLS.
    Tcp,
    /// A call of the gRPC health service, `grpc.health.v1`.
    Grpc {
        /// Service to check; empty checks the whole server.
        service: String,
    },
}

/// Configuration of outlier detection, which ejects endpoints that fail or are slow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierDetectionSpec {
    /// Whether endpoints are ejected, ejections are only logged, or detection is off.
    pub mode: Mode,
    /// Thresholds, ejection times and the maximum share of ejected endpoints.
    pub config: OutlierConfig,
}

//! Backends: where their endpoints are, how one is chosen, and how it is found out which are well.

use std::{
    fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc, time::Duration,
};

use crate::{
    policy::{
        snapshot::{BackendTlsSpec, Protocol},
        units::StatusSet,
    },
    resilience::{Mode, health::HealthConfig, outlier::OutlierConfig, warm_up::WarmUpConfig},
};

/// A backend.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Where its endpoints are.
    pub discovery: Discovery,
    /// What is spoken.
    pub protocol: Protocol,
    /// TLS towards it.
    pub tls: Option<BackendTlsSpec>,
    /// How one is chosen.
    pub load_balancer: LoadBalancerSpec,
    /// How a new one comes to its share.
    pub warm_up: Option<WarmUpConfig>,
    /// With so many endpoints in this instance's zone, they are preferred; `None` if zones do not matter.
    pub min_endpoints_in_zone: Option<u32>,
    /// Below this percentage of available endpoints, availability is ignored.
    pub panic_threshold_percent: u32,
    /// How health is found out.
    pub active_check: Option<ActiveCheckSpec>,
    /// Which endpoints are left out for how they answer.
    pub outlier_detection: Option<OutlierDetectionSpec>,
}

/// Where endpoints are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// Written in the policy.
    Static(Vec<EndpointSpec>),
    /// In a file that is watched.
    File(PathBuf),
    /// Behind a name that is resolved.
    Dns(DnsSpec),
}

/// A name that is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSpec {
    /// The name.
    pub name: String,
    /// The port; `None` asks for SRV, which brings its own.
    pub port: Option<u16>,
    /// An answer is believed at least so long.
    pub min_ttl: Duration,
    /// And at most so long.
    pub max_ttl: Duration,
}

/// An endpoint, as it is told of where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointSpec {
    /// Its address.
    pub address: EndpointAddress,
    /// Its share among its peers.
    pub weight: NonZeroU32,
    /// Where it is.
    pub zone: Option<Arc<str>>,
    /// Lower ones are asked first.
    pub priority: u32,
}

impl EndpointSpec {
    /// An endpoint of which nothing but the address is told.
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

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(Arc<str>),
}

/// The text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidEndpointAddress;

impl fmt::Display for InvalidEndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an IP address and a port, nor `unix:` and the absolute path of a socket")
    }
}

impl std::error::Error for InvalidEndpointAddress {}

/// The longest path that the system takes for a socket (`sun_path`), without the zero at its end.
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

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadBalancerSpec {
    /// The less busy of two.
    LeastRequest,
    /// The cheaper of two by latency.
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// By a key.
    ConsistentHash {
        /// Where it is.
        key: HashKey,
        /// How much more than its share an endpoint may have in flight.
        bound: f64,
    },
}

/// What binds a request to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(http::HeaderName),
    /// The value of a cookie.
    Cookie(String),
    /// The client's address.
    ClientIp,
}

/// How health is found out.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveCheckSpec {
    /// What is asked.
    pub probe: ProbeSpec,
    /// How often.
    pub interval: Duration,
    /// How often while it is unhealthy.
    pub unhealthy_interval: Duration,
    /// How soon after a result that differs from what is known.
    pub edge_interval: Duration,
    /// The share by which these are drawn around their values.
    pub jitter: f64,
    /// How long one may take.
    pub timeout: Duration,
    /// What the results mean.
    pub thresholds: HealthConfig,
}

impl ActiveCheckSpec {
    /// The host that is named, if it is another than the endpoint's.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.probe {
            ProbeSpec::Http { host, .. } => host.as_deref(),
            ProbeSpec::Tcp | ProbeSpec::Grpc { .. } => None,
        }
    }

    /// The path that is asked, if it is one of HTTP.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match &self.probe {
            ProbeSpec::Http { path, .. } => Some(path),
            ProbeSpec::Tcp | ProbeSpec::Grpc { .. } => None,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeSpec {
    /// A GET.
    Http {
        /// The path.
        path: String,
        /// The host header; the endpoint's address if absent.
        host: Option<String>,
        /// The statuses that pass.
        expected: StatusSet,
        /// What the body must contain.
        body: Option<String>,
    },
    /// A connection.
    Tcp,
    /// The health service of gRPC.
    Grpc {
        /// The service; empty for the whole server.
        service: String,
    },
}

/// Which endpoints are left out for how they answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierDetectionSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// How.
    pub config: OutlierConfig,
}

//! Where requests come in.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ListenerTls,
    units::{ByteSize, PolicyDuration},
};

/// A socket that takes requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// The name, unique among listeners.
    pub name: String,
    /// Inbound: callers to this pod's app. Outbound: the app to other services.
    pub direction: Direction,
    /// The address and port, like `0.0.0.0:16001`; port 0 lets the system choose.
    pub address: String,
    /// What is spoken. Default Auto.
    pub protocol: Option<ListenerProtocol>,
    /// TLS towards clients. Without it nothing is encrypted.
    pub tls: Option<ListenerTls>,
    /// What a client may use up.
    pub limits: Option<ListenerLimits>,
    /// How the address of a client is known that comes by way of proxies. Without it the address is that of the connection.
    #[serde(rename = "clientIPDetection")]
    pub client_ip_detection: Option<ClientIpDetection>,
}

/// How the address of a client is known that comes by way of proxies.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientIpDetection {
    /// By `x-forwarded-for`.
    pub x_forwarded_for: TrustedForwardedFor,
}

/// Whose `x-forwarded-for` is believed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedForwardedFor {
    /// The ranges of trusted proxies, like `10.0.0.0/8`. The client is the last address that is not in them; without any, the first.
    #[serde(rename = "trustedCIDRs")]
    pub trusted_cidrs: Vec<String>,
}

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
pub enum Direction {
    /// Callers to this pod's app.
    Inbound,
    /// The app to other services.
    Outbound,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ListenerProtocol {
    /// HTTP/1.0 and HTTP/1.1, with upgrades.
    HTTP1,
    /// HTTP/2.
    HTTP2,
    /// Both: by ALPN under TLS, without TLS by what the client begins with.
    Auto,
}

/// What a client may use up.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Connections at once; more are closed at once. Default 10000.
    pub max_connections: Option<u32>,
    /// The time for the whole request head, from its first byte. Default 10s.
    pub header_timeout: Option<PolicyDuration>,
    /// How long a connection may be idle between requests. Default 75s.
    pub idle_timeout: Option<PolicyDuration>,
    /// The longest request head. Default 64Ki.
    pub max_header_bytes: Option<ByteSize>,
    /// Requests at once on one connection of HTTP/2. Default 100.
    pub max_concurrent_streams: Option<u32>,
    /// The longest request body. Default 32Mi.
    pub max_body_bytes: Option<ByteSize>,
}

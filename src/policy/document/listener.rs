//! Listeners: the sockets that accept requests, and their limits.
//!
//! This module does not know the connections of a listener.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::tls::ListenerTls,
    units::{ByteSize, PolicyDuration},
};

/// Socket that accepts requests from clients.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Name of the listener, unique among listeners.
    pub name: String,
    /// Direction of the requests. Inbound requests go from clients to the app. Outbound
    /// requests go from the app to other services.
    pub direction: Direction,
    /// IP address and port, like `0.0.0.0:16001`. With port 0, the system chooses a free port.
    pub address: String,
    /// Protocol of the clients. Default Auto.
    pub protocol: Option<ListenerProtocol>,
    /// TLS towards clients. Without this section, connections are not encrypted.
    pub tls: Option<ListenerTls>,
    /// Limits on connections and requests of clients.
    pub limits: Option<ListenerLimits>,
    /// How the address of a client behind proxies is determined. By default, it is the peer
    /// address of the connection.
    #[serde(rename = "clientIPDetection")]
    pub client_ip_detection: Option<ClientIpDetection>,
}

/// How the address of a client behind proxies is determined.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientIpDetection {
    /// Reads the address from the request header `x-forwarded-for`.
    pub x_forwarded_for: TrustedForwardedFor,
}

/// Proxies whose entries in `x-forwarded-for` are trusted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedForwardedFor {
    /// Address ranges of trusted proxies, like `10.0.0.0/8`, at least one. The client is the
    /// last address of the chain that is not in these ranges. If all addresses are in them, it
    /// is the first one.
    #[serde(rename = "trustedCIDRs")]
    pub trusted_cidrs: Vec<String>,
}

/// Direction of the requests of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
pub enum Direction {
    /// Requests from clients to the app of this pod.
    Inbound,
    /// Requests from the app to other services.
    Outbound,
}

/// Writes the name that policies use.
impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "Inbound",
            Self::Outbound => "Outbound",
        })
    }
}

/// Protocol of the clients of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ListenerProtocol {
    /// HTTP/1.0 and HTTP/1.1, including upgrades such as WebSocket.
    HTTP1,
    /// HTTP/2 only, including gRPC.
    HTTP2,
    /// HTTP/1 and HTTP/2. With TLS the protocol is negotiated by ALPN; without TLS the first
    /// bytes of the client decide.
    Auto,
}

/// Limits on connections and requests of clients.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Maximum number of open connections of the listener, at least 1. Further connections are
    /// closed immediately. Default 10000.
    pub max_connections: Option<u32>,
    /// Maximum time for a whole request head, from its first byte, and for a TLS handshake;
    /// above 0s. A late head is rejected with 408. Default 10s.
    pub header_timeout: Option<PolicyDuration>,
    /// Time without a request after which a connection is closed, above 0s. Default 75s.
    pub idle_timeout: Option<PolicyDuration>,
    /// Maximum size of a request head, 1Ki to 1Mi. A larger head is rejected with 431. Default
    /// 64Ki.
    pub max_header_bytes: Option<ByteSize>,
    /// Maximum number of fields in a request head, 16 to 1024. A head with more is rejected with
    /// 431. Default 256.
    pub max_headers: Option<u16>,
    /// Maximum number of requests in flight on one HTTP/2 connection, at least 1. Default 100.
    pub max_concurrent_streams: Option<u32>,
    /// Maximum size of a request body. A larger body is rejected with 413. Default 32Mi.
    pub max_body_bytes: Option<ByteSize>,
}

//! Backends: named groups of endpoints, and the sources of the endpoints.
//!
//! This module does not know which endpoints are available.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::policy::{
    document::{
        balancer::LoadBalancer,
        health::{HealthCheck, OutlierDetection},
        tls::BackendTls,
    },
    units::PolicyDuration,
};

/// Named group of endpoints. Exactly one of `endpoints`, `dns` and `endpointsFile` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendEntry {
    /// Name of the backend, unique among backends.
    pub name: String,
    /// Fixed list of addresses, at least one.
    pub endpoints: Option<Vec<EndpointEntry>>,
    /// DNS name that the sidecar resolves repeatedly to find the endpoints.
    pub dns: Option<Dns>,
    /// Path of a JSON or YAML file with endpoints: a list like `endpoints`, or a mapping with
    /// that key. The sidecar reloads the file once its content has been stable for 100 ms. To
    /// replace it safely, write a new file and rename it. At most 10000 endpoints.
    pub endpoints_file: Option<String>,
    /// Protocol towards the endpoints. Default HTTP1.
    pub protocol: Option<BackendProtocol>,
    /// TLS towards the endpoints. Without this section, connections are not encrypted.
    pub tls: Option<BackendTls>,
    /// Algorithm that selects an endpoint for each attempt. Default LeastRequest.
    pub load_balancer: Option<LoadBalancer>,
    /// Active checks and the panic threshold. Without an active check, all endpoints count as
    /// healthy.
    pub health_check: Option<HealthCheck>,
    /// Temporary ejection of endpoints that fail or are slow. Without this section, no endpoint
    /// is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// Name of the policy whose sections apply to requests to this backend, unless the route or
    /// its policy sets them.
    pub policy: Option<String>,
}

/// Protocol towards the endpoints of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum BackendProtocol {
    /// HTTP/1.1, including upgrades such as WebSocket.
    HTTP1,
    /// HTTP/2. With TLS it is negotiated by ALPN; without TLS it is used directly ("prior
    /// knowledge").
    HTTP2,
    /// gRPC over HTTP/2. A call succeeds or fails by its status in the trailers.
    GRPC,
}

/// One endpoint: an address like `"127.0.0.1:8080"`, or a mapping like
/// `{address: "10.0.0.7:80", weight: 2}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry(pub EndpointFields);

/// Address of one endpoint, with its weight, zone and priority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointFields {
    /// IP address with a port, or `unix:` with the path of a socket. Each address occurs once
    /// in a backend.
    pub address: String,
    /// Share of the requests relative to the other endpoints of the same priority, at least 1.
    /// Default 1.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Availability zone of the endpoint. Endpoints in the zone of this instance (`--zone`) are
    /// preferred. Default none.
    pub zone: Option<String>,
    /// Priority; endpoints with the lowest number receive requests first. Endpoints with the
    /// next number receive the rest if fewer than about 71 % of the endpoints with lower numbers
    /// are available. Default 0.
    #[serde(default)]
    pub priority: u32,
}

/// DNS name that the sidecar resolves repeatedly. If a lookup fails, the last known endpoints
/// remain in use.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// Name to resolve. With a trailing dot it is absolute; without one, the search list of the
    /// system also applies.
    pub name: String,
    /// Type of the records. A queries A and AAAA records. SRV queries names with ports,
    /// priorities and weights. Default A.
    #[serde(rename = "type")]
    pub kind: Option<DnsType>,
    /// Port of all endpoints, 1 to 65535. Required with A; not allowed with SRV, whose records
    /// contain the port.
    pub port: Option<u16>,
    /// Minimum time between two lookups, whatever the TTL of the response is; at least 10ms.
    /// Default 1s.
    pub min_ttl: Option<PolicyDuration>,
    /// Maximum time between two lookups, at least `minTtl`. Default 30s.
    pub max_ttl: Option<PolicyDuration>,
}

/// Type of the DNS records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum DnsType {
    /// IPv4 and IPv6 addresses from A and AAAA records.
    A,
    /// Names with ports, priorities and weights from SRV records.
    SRV,
}

fn default_weight() -> u32 {
    1
}

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndpointEntryVisitor;
        impl<'de> de::Visitor<'de> for EndpointEntryVisitor {
            type Value = EndpointFields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address like \"127.0.0.1:8080\", or {address: .., weight: ..}")
            }

            fn visit_str<E: de::Error>(self, address: &str) -> Result<EndpointFields, E> {
                Ok(EndpointFields {
                    address: address.to_owned(),
                    weight: default_weight(),
                    zone: None,
                    priority: 0,
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<EndpointFields, A::Error> {
                EndpointFields::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(EndpointEntryVisitor).map(Self)
    }
}

impl JsonSchema for EndpointEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EndpointEntry".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let object = generator.subschema_for::<EndpointFields>();
        let address = schemars::json_schema!({
            "type": "string",
            "description": "An IP address and a port, or `unix:` and the path of a socket.",
        });
        schemars::json_schema!({"anyOf": [address, object]})
    }
}

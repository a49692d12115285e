//! Where requests go to.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::policy::{
    document::{BackendTls, HealthCheck, LoadBalancer, OutlierDetection},
    units::PolicyDuration,
};

/// A named group of endpoints.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendEntry {
    /// The name, unique among backends.
    pub name: String,
    /// The addresses; or they are found by `dns`, or in a file.
    pub endpoints: Option<Vec<EndpointEntry>>,
    /// A name that is resolved, again and again.
    pub dns: Option<Dns>,
    /// A file of endpoints, JSON or YAML, that is read again when it changes: a list like `endpoints`, or a mapping with that key. It is
    /// taken when it has not changed for 100 ms; who writes it best writes another and renames it.
    pub endpoints_file: Option<String>,
    /// What is spoken to the endpoints. Default HTTP1.
    pub protocol: Option<BackendProtocol>,
    /// TLS towards the endpoints. Without it nothing is encrypted.
    pub tls: Option<BackendTls>,
    /// How an endpoint is chosen. Default LeastRequest.
    pub load_balancer: Option<LoadBalancer>,
    /// How the endpoints' health is found out. Without it all are taken as healthy.
    pub health_check: Option<HealthCheck>,
    /// Endpoints that answer badly or slowly are left out for a while. Without it all are asked.
    pub outlier_detection: Option<OutlierDetection>,
    /// The named policy of this backend.
    pub policy: Option<String>,
}

/// What is spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum BackendProtocol {
    /// HTTP/1.1, with upgrades.
    HTTP1,
    /// HTTP/2: by ALPN under TLS, without TLS at once ("prior knowledge").
    HTTP2,
    /// gRPC: HTTP/2, whose outcome is the status in the trailers.
    GRPC,
}

/// One address: `"127.0.0.1:8080"`, or `{address: "10.0.0.7:80", weight: 2}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry(pub EndpointFields);

/// One address with its weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointFields {
    /// An IP address and a port, or `unix:` and the path of a socket.
    pub address: String,
    /// Its share among its peers. Default 1.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Where it is. Endpoints in the zone of this instance (`--zone`) are preferred.
    pub zone: Option<String>,
    /// 0 is asked first; a higher number is asked when too few of the lower ones are available. Default 0.
    #[serde(default)]
    pub priority: u32,
}

/// A name that is resolved, again and again.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// The name. With a dot at its end it is looked up as it is; without, the search list of the system is tried too.
    pub name: String,
    /// A asks for addresses of IPv4 and IPv6, SRV for names with ports, priorities and weights. Default A.
    #[serde(rename = "type")]
    pub kind: Option<DnsType>,
    /// The port, for A; SRV brings its own.
    pub port: Option<u16>,
    /// An answer is believed at least so long, whatever its TTL says. Default 1s.
    pub min_ttl: Option<PolicyDuration>,
    /// And at most so long. Default 30s.
    pub max_ttl: Option<PolicyDuration>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum DnsType {
    /// Addresses of IPv4 and IPv6.
    A,
    /// Names, ports, priorities and weights.
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
        schemars::json_schema!({"anyOf": [{"type": "string", "description": "An IP address and a port, or `unix:` and the path of a socket."}, object]})
    }
}

//! Where requests go to.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::policy::units::{Span, StatusRange};

/// A named group of endpoints.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// The name, unique among backends.
    pub name: String,
    /// The addresses.
    pub endpoints: Vec<EndpointEntry>,
    /// How an endpoint is chosen. Default LeastRequest.
    pub load_balancer: Option<LoadBalancer>,
    /// How the endpoints' health is found out. Without it all are taken as healthy.
    pub health_check: Option<HealthCheck>,
    /// The named policy of this backend.
    pub policy: Option<String>,
}

/// One address: `"127.0.0.1:8080"`, or `{address: "10.0.0.7:80", weight: 2}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry(pub Endpoint);

/// One address with its weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// An IP address and a port.
    pub address: String,
    /// Its share among its peers. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Endpoint;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address like \"127.0.0.1:8080\", or {address: .., weight: ..}")
            }

            fn visit_str<E: de::Error>(self, address: &str) -> Result<Endpoint, E> {
                Ok(Endpoint { address: address.to_owned(), weight: one() })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                Endpoint::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Visitor).map(Self)
    }
}

impl JsonSchema for EndpointEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EndpointEntry".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let object = generator.subschema_for::<Endpoint>();
        schemars::json_schema!({"anyOf": [{"type": "string", "description": "An IP address and a port."}, object]})
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// The algorithm.
    #[serde(rename = "type")]
    pub kind: LoadBalancerType,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// The less busy of two drawn at random, by weight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
}

/// How the endpoints' health is found out.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// Below this percentage of healthy endpoints, health is ignored; 0 never ignores it. Of three endpoints or more. Default 50.
    pub panic_threshold: Option<u32>,
    /// Asking the endpoints.
    pub active: Option<ActiveCheck>,
}

/// Asking the endpoints.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActiveCheck {
    /// HTTP asks a path, TCP connects.
    #[serde(rename = "type")]
    pub kind: ActiveCheckType,
    /// The time between two checks of an endpoint, jittered by 10 %. Default 5s.
    pub interval: Option<Span>,
    /// The time for one check. Default 1s.
    pub timeout: Option<Span>,
    /// Failures in a row that make an endpoint unhealthy. Default 3.
    pub unhealthy_threshold: Option<u32>,
    /// Passes in a row that make it healthy again; the very first pass does at once. Default 2.
    pub healthy_threshold: Option<u32>,
    /// What to ask, for HTTP.
    pub http: Option<HttpCheck>,
}

/// How an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ActiveCheckType {
    /// A GET of a path.
    HTTP,
    /// A connection.
    TCP,
}

/// What an HTTP check asks.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The path.
    pub path: String,
    /// The host header. Default the endpoint's address.
    pub host: Option<String>,
    /// The statuses that pass. Default 200-399.
    pub expected_statuses: Option<Vec<StatusRange>>,
}

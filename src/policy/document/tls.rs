//! TLS towards clients and backends, and the clients that may use a route.
//!
//! This module names certificate files and does not read them.

use schemars::JsonSchema;
use serde::Deserialize;

/// TLS towards clients. The files are reloaded when their content changes. Open connections
/// keep the certificates with which they started.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// Path of the server certificate and its chain, in PEM.
    pub cert_file: String,
    /// Path of the private key of the certificate, in PEM.
    pub key_file: String,
    /// Path of the certificate authorities for client certificates, in PEM. Required with
    /// `clientAuth` Optional or Required.
    pub client_ca_file: Option<String>,
    /// Whether clients present a certificate. Default Required with `clientCaFile`, otherwise
    /// None.
    pub client_auth: Option<ClientAuth>,
}

/// Whether clients present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// The sidecar does not request a client certificate.
    None,
    /// A client may present a certificate. An invalid certificate is rejected.
    Optional,
    /// A client must present a valid certificate.
    Required,
}

/// TLS towards the endpoints of a backend. The files are reloaded when their content changes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTls {
    /// Host name or IP address that the certificate of an endpoint must contain. It is also
    /// sent as SNI.
    pub sni: String,
    /// Path of the certificate authorities for the certificates of the endpoints, in PEM.
    /// Default those of the system.
    pub ca_file: Option<String>,
    /// Path of the client certificate that the sidecar presents, in PEM. It needs `keyFile`.
    /// Default none.
    pub cert_file: Option<String>,
    /// Path of the private key of the client certificate, in PEM. It needs `certFile`. Default
    /// none.
    pub key_file: Option<String>,
}

/// Clients that may use a route, by the identity in their certificate. A listener of the route
/// needs `clientCaFile`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AllowedIdentities {
    /// Identities in client certificates, at least one: a SPIFFE URI or a DNS name, exact or
    /// with `*` at its end. All other clients receive 403.
    pub identities: Vec<String>,
}

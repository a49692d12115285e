//! TLS: towards clients and towards backends.

use schemars::JsonSchema;
use serde::Deserialize;

/// TLS towards clients. The files are read again when they change; connections that are open keep what they began with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// The certificate and its chain, PEM.
    pub cert_file: String,
    /// Its key, PEM.
    pub key_file: String,
    /// The authorities that certificates of clients must come from, PEM.
    pub client_ca_file: Option<String>,
    /// Whether a client must show a certificate. Default Required with `clientCaFile`, None without.
    pub client_auth: Option<ClientAuth>,
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// It is not asked for one.
    None,
    /// It may show one, which must be good then.
    Optional,
    /// It must.
    Required,
}

/// TLS towards a backend. The files are read again when they change.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTls {
    /// The name that the backend's certificate must have. There is no TLS without one.
    pub sni: String,
    /// The authorities that its certificate must come from, PEM. Default those of the system.
    pub ca_file: Option<String>,
    /// Our own certificate, if the backend asks for one, PEM.
    pub cert_file: Option<String>,
    /// Its key, PEM.
    pub key_file: Option<String>,
}

/// Who may use a route.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AllowedIdentities {
    /// Identities in certificates of clients: a SPIFFE URI or a DNS name, exact or with `*` at its end. Anybody else gets a 403.
    pub identities: Vec<String>,
}

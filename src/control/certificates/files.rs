//! Reads certificate files and builds the TLS configuration of a listener or backend.
//!
//! Changes are detected by content hash: Kubernetes mounts a Secret as symbolic links that are
//! swapped, and modification times are unreliable. The module does not decide whether the
//! result is used.

use std::{
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{
    policy::snapshot::{BackendTlsSpec, IdentityFiles, ListenerTlsSpec, Protocol},
    state::topology::tls::{TlsMaterial, TlsStore},
    transport::certificate,
};

/// Raw content of the certificate files of one listener or backend. `paths` holds the paths of
/// chain, key and CA for error messages.
pub(super) struct CertificateFiles {
    chain: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
    paths: [String; 3],
    /// Hash of the contents, which detects a change.
    pub(super) content_hash: u64,
}

impl CertificateFiles {
    pub(super) fn read_server(spec: &ListenerTlsSpec) -> Result<Self, String> {
        Self::read(Some(&spec.identity), spec.client_ca.as_deref())
    }

    pub(super) fn read_client(spec: &BackendTlsSpec) -> Result<Self, String> {
        Self::read(spec.identity.as_ref(), spec.ca.as_deref())
    }

    fn read(identity: Option<&IdentityFiles>, ca_path: Option<&Path>) -> Result<Self, String> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let name = |path: Option<&Path>| {
            path.map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        let chain = identity
            .map(|pair| read(&pair.cert))
            .transpose()?
            .unwrap_or_default();
        let key = identity
            .map(|pair| read(&pair.key))
            .transpose()?
            .unwrap_or_default();
        let ca_content = ca_path.map(read).transpose()?;
        // The hash only detects changes and stays in memory, so it need not be stable across
        // processes.
        let content =
            BuildHasherDefault::<DefaultHasher>::default().hash_one((&chain, &key, &ca_content));
        let names = [
            name(identity.map(|pair| pair.cert.as_path())),
            name(identity.map(|pair| pair.key.as_path())),
            name(ca_path),
        ];
        Ok(Self {
            chain,
            key,
            ca: ca_content,
            paths: names,
            content_hash: content,
        })
    }

    pub(super) fn build_server(
        &self,
        spec: &ListenerTlsSpec,
        store: &TlsStore,
    ) -> Result<TlsMaterial<ServerConfig>, String> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut ca_expiry = None;
        let builder = match self.parse_roots()? {
            None => builder.with_no_client_auth(),
            Some((roots, expiry)) => {
                ca_expiry = expiry;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
                let verifier = if spec.is_client_certificate_optional {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                builder.with_client_cert_verifier(
                    verifier
                        .build()
                        .map_err(|error| format!("{}: {error}", self.paths[2]))?,
                )
            }
        };
        let chain = self.parse_chain()?;
        let not_after = earlier_expiry(earliest_expiry(&chain), ca_expiry);
        let mut config = builder
            .with_single_cert(chain, self.parse_key()?)
            .map_err(|error| self.describe_mismatch(&error))?;
        config.alpn_protocols = alpn(spec.protocol);
        if matches!(spec.protocol, Protocol::Http1 | Protocol::Auto) {
            // A client that offers nothing else could not connect.
            config.alpn_protocols.push(b"http/1.0".to_vec());
        }
        Ok(self.to_material(config, not_after, store))
    }

    pub(super) fn build_client(
        &self,
        spec: &BackendTlsSpec,
        store: &TlsStore,
    ) -> Result<TlsMaterial<ClientConfig>, String> {
        let (roots, ca_expiry) = match self.parse_roots()? {
            Some(read) => read,
            None => (system_roots()?, None),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
            .build()
            .map_err(|error| format!("{}: {error}", self.paths[2]))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier);
        let (mut config, not_after) = if spec.identity.is_some() {
            let chain = self.parse_chain()?;
            let not_after = earliest_expiry(&chain);
            let config = builder.with_client_auth_cert(chain, self.parse_key()?);
            (
                config.map_err(|error| self.describe_mismatch(&error))?,
                earlier_expiry(not_after, ca_expiry),
            )
        } else {
            (builder.with_no_client_auth(), ca_expiry)
        };
        config.alpn_protocols = alpn(spec.protocol);
        Ok(self.to_material(config, not_after, store))
    }

    fn to_material<C>(
        &self,
        config: C,
        not_after: Option<SystemTime>,
        store: &TlsStore,
    ) -> TlsMaterial<C> {
        TlsMaterial {
            config: Arc::new(config),
            content_hash: self.content_hash,
            generation: store.next_generation(),
            not_after,
        }
    }

    fn describe_mismatch(&self, error: &rustls::Error) -> String {
        let [chain, key, _] = &self.paths;
        format!("{chain} and {key} do not match: {error}")
    }

    fn parse_chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.chain)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{} is not PEM: {error}", self.paths[0]))?;
        if chain.is_empty() {
            Err(format!("there is no certificate in {}", self.paths[0]))
        } else {
            Ok(chain)
        }
    }

    fn parse_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("there is no key in {}: {error}", self.paths[1]))
    }

    /// Parses the CA file and returns its certificates and the latest of their expiry times.
    /// Returns `None` without a CA file.
    fn parse_roots(&self) -> Result<Option<(RootCertStore, Option<SystemTime>)>, String> {
        let Some(bytes) = &self.ca else {
            return Ok(None);
        };
        let (mut roots, mut expiry) = (RootCertStore::empty(), None);
        for authority in CertificateDer::pem_slice_iter(bytes) {
            let authority =
                authority.map_err(|error| format!("{} is not PEM: {error}", self.paths[2]))?;
            expiry = expiry.max(certificate::not_after(&authority));
            roots.add(authority).map_err(|error| {
                format!("{} holds what is no authority: {error}", self.paths[2])
            })?;
        }
        if roots.is_empty() {
            Err(format!("there is no certificate in {}", self.paths[2]))
        } else {
            Ok(Some((roots, expiry)))
        }
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        Err("the system has no authorities; name some with `caFile`".to_owned())
    } else {
        Ok(roots)
    }
}

fn earliest_expiry(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    chain
        .iter()
        .filter_map(|certificate| certificate::not_after(certificate))
        .min()
}

fn earlier_expiry(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}

fn alpn(protocol: Protocol) -> Vec<Vec<u8>> {
    let names: &[&[u8]] = match protocol {
        Protocol::Http1 => &[b"http/1.1"],
        Protocol::Http2 | Protocol::Grpc => &[b"h2"],
        Protocol::Auto => &[b"h2", b"http/1.1"],
    };
    names.iter().map(|name| name.to_vec()).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

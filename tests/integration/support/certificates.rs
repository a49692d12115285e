//! A certificate authority for tests, and the certificates that it issues.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

use super::TempDirectory;

/// Certificate authority, and the directory with its certificates.
pub(crate) struct CertificateAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) directory: TempDirectory,
}

/// Certificate and its private key.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl CertificateAuthority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "the authority of a test");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = TempDirectory::new();
        directory.write("ca.crt", &issuer.pem());
        Self { issuer, directory }
    }

    /// Issues a certificate for these names. Names with the prefix `spiffe://` become URIs.
    pub(crate) fn issue(&self, names: &[&str]) -> Certificate {
        self.issue_expiring_in_year(names, 2100)
    }

    /// Issues a certificate that expires at the start of a year.
    pub(crate) fn issue_expiring_in_year(&self, names: &[&str], year: i32) -> Certificate {
        self.issue_expiring_at(names, date_time_ymd(year, 1, 1).into())
    }

    /// Issues a certificate that expires at this time.
    pub(crate) fn issue_expiring_at(&self, names: &[&str], end: SystemTime) -> Certificate {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name {
                name if name.starts_with("spiffe://") => SanType::URI((*name).try_into().unwrap()),
                name => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.not_after = end.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            pem: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// Writes a certificate and its key as `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, name: &str, certificate: &Certificate) {
        self.directory
            .write(&format!("{name}.key"), &certificate.key);
        self.directory
            .write(&format!("{name}.crt"), &certificate.pem);
    }

    /// Returns the field `tls` of a listener that presents `server.crt`. `fields` starts with a
    /// comma if it is not empty.
    pub(crate) fn listener_tls(&self, fields: &str) -> String {
        let (certificate, key) = (self.path("server.crt"), self.path("server.key"));
        let (certificate, key) = (certificate.display(), key.display());
        format!("tls: {{certFile: \"{certificate}\", keyFile: \"{key}\"{fields}}}")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn root_store(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// Returns the configuration of a client that trusts this authority and offers these protocols.
    /// The client presents `client_certificate`, if there is one.
    pub(crate) fn client_config(
        &self,
        client_certificate: Option<&Certificate>,
        protocols: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = builder.with_root_certificates(self.root_store());
        let mut config = match client_certificate {
            None => builder.with_no_client_auth(),
            Some(client_certificate) => builder
                .with_client_auth_cert(
                    vec![client_certificate.der.clone()],
                    client_certificate.private_key(),
                )
                .unwrap(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// Returns the configuration of a server with this certificate and these protocols.
    pub(crate) fn server_config(
        &self,
        server_certificate: &Certificate,
        requires_client_certificate: bool,
        protocols: &[&[u8]],
    ) -> Arc<ServerConfig> {
        let provider = || Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if requires_client_certificate {
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(
                    Arc::new(self.root_store()),
                    provider(),
                )
                .build()
                .unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(
                vec![server_certificate.der.clone()],
                server_certificate.private_key(),
            )
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

impl Certificate {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key_der.clone()).unwrap()
    }
}

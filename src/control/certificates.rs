//! Loads certificate files for listeners and backends, and reloads them when their content
//! changes.
//!
//! This module decides which certificates new connections use. It detects changes by content
//! hash: Kubernetes mounts a Secret as symbolic links that are swapped, and modification times
//! are unreliable. The module does not know which connections use a certificate.
//!
//! | files | effect |
//! | --- | --- |
//! | of a new policy set, unreadable, invalid or expired | the whole set is rejected |
//! | in use, now unreadable or invalid | the previous content stays in use; reported |
//! | in use, replaced by expired certificates | the previous content stays in use; reported |
//! | in use, a certificate expires or is close to expiry | the content stays in use; reported |
//!
//! "Reported" means an event, a metric and an entry in the readiness report.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{
    clock,
    policy::snapshot::{BackendTlsSpec, IdentityFiles, ListenerTlsSpec, PolicySnapshot, Protocol},
    state::{
        State,
        topology::tls::{TlsMaterial, TlsStore, TlsUpdate},
    },
    telemetry::{event::Event, tls_subject::TlsSubject},
    transport::certificate,
};

/// Remaining validity at or below which a certificate causes a warning. cert-manager renews
/// with a third of the lifetime left, 30 of 90 days by default, so this little time indicates a
/// failed renewal.
const EXPIRY_WARNING_PERIOD: Duration = Duration::from_hours(24 * 7);

/// Loads all certificate files of a policy set that the store does not hold yet.
///
/// # Errors
/// One message for each faulty listener or backend, prefixed with the policy location that
/// names the file.
pub(super) fn load_missing(
    snapshot: &PolicySnapshot,
    store: &TlsStore,
) -> Result<TlsUpdate, Vec<String>> {
    let (mut fresh, mut faults) = (TlsUpdate::default(), Vec::new());
    for spec in snapshot
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
        .filter(|spec| store.listener_material(spec).is_none())
    {
        match CertificateFiles::read_server(spec)
            .and_then(|files| files.build_server(spec, store))
            .and_then(reject_expired)
        {
            Ok(material) => drop(fresh.listeners.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.location)),
        }
    }
    for spec in snapshot
        .backends
        .iter()
        .filter_map(|backend| backend.tls.as_ref())
        .filter(|spec| store.backend_material(spec).is_none())
    {
        match CertificateFiles::read_client(spec)
            .and_then(|files| files.build_client(spec, store))
            .and_then(reject_expired)
        {
            Ok(material) => drop(fresh.backends.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.location)),
        }
    }
    if faults.is_empty() {
        Ok(fresh)
    } else {
        Err(faults)
    }
}

/// Checks the certificate files of the active policy every `poll_interval`, and reloads changed
/// ones. Never returns.
pub(super) async fn watch_certificates(state: Arc<State>, poll_interval: Duration) {
    let mut reported = CertificateReports::default();
    loop {
        let active_policy = state.active_policy.load_full();
        let (mut fresh, mut subjects) = (TlsUpdate::default(), Vec::new());
        for listener in &active_policy.snapshot.listeners {
            let Some((spec, known)) = listener
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.listener_material(spec)?)))
            else {
                continue;
            };
            let subject = TlsSubject::Listener(listener.name.clone());
            let read = CertificateFiles::read_server(spec).and_then(|files| {
                if files.content_hash == known.content_hash {
                    Ok(known.clone())
                } else {
                    files.build_server(spec, &state.tls)
                }
            });
            fresh.listeners.insert(
                spec.clone(),
                reported.select_and_report(&state, &subject, read, &known),
            );
            subjects.push(subject);
        }
        for backend in &active_policy.snapshot.backends {
            let Some((spec, known)) = backend
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.backend_material(spec)?)))
            else {
                continue;
            };
            let subject = TlsSubject::Backend(backend.name.clone());
            let read = CertificateFiles::read_client(spec).and_then(|files| {
                if files.content_hash == known.content_hash {
                    Ok(known.clone())
                } else {
                    files.build_client(spec, &state.tls)
                }
            });
            fresh.backends.insert(
                spec.clone(),
                reported.select_and_report(&state, &subject, read, &known),
            );
            subjects.push(subject);
        }
        state.tls.apply(&fresh);
        reported.retain_subjects(&state, &subjects);
        clock::sleep(poll_interval).await;
    }
}

/// Last reported status of each listener and backend with certificates, so that each change is
/// reported once.
#[derive(Debug, Default)]
struct CertificateReports(HashMap<TlsSubject, CertificateReport>);

/// Last reported status of the certificates of one listener or backend.
#[derive(Debug)]
struct CertificateReport {
    expiry_status: ExpiryStatus,
    fault: Option<String>,
}

/// Expiry status, derived from the remaining validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpiryStatus {
    Valid,
    ExpiresSoon,
    Expired,
}

impl ExpiryStatus {
    fn from_remaining(remaining: Option<Duration>) -> Self {
        match remaining {
            Some(Duration::ZERO) => Self::Expired,
            Some(remaining) if remaining <= EXPIRY_WARNING_PERIOD => Self::ExpiresSoon,
            Some(_) | None => Self::Valid,
        }
    }
}

impl CertificateReports {
    /// Returns the certificates to use after a read: the new ones if they are usable, otherwise
    /// the known ones.
    ///
    /// Emits events only for changes, and always updates the metric and the readiness report.
    fn select_and_report<C>(
        &mut self,
        state: &State,
        subject: &TlsSubject,
        read: Result<TlsMaterial<C>, String>,
        known: &TlsMaterial<C>,
    ) -> TlsMaterial<C> {
        let reported = self.0.get(subject);
        let read = read.and_then(|material| {
            if material.generation == known.generation {
                Ok(material)
            } else {
                reject_expired(material)
            }
        });
        let current = match &read {
            Ok(material) if material.generation != known.generation => {
                state.telemetry.emit(Event::CertificateChanged {
                    subject: subject.clone(),
                });
                material.clone()
            }
            Ok(material) => material.clone(),
            Err(fault) => {
                if reported.is_none_or(|reported| reported.fault.as_ref() != Some(fault)) {
                    state.telemetry.emit(Event::CertificateRefused {
                        subject: subject.clone(),
                        reason: fault.clone(),
                    });
                }
                known.clone()
            }
        };
        let remaining = remaining_validity(&current);
        let expiry_status = ExpiryStatus::from_remaining(remaining);
        if let Some(remaining) = remaining.filter(|_| {
            expiry_status != ExpiryStatus::Valid
                && reported.is_none_or(|reported| reported.expiry_status != expiry_status)
        }) {
            state.telemetry.emit(Event::CertificateExpiring {
                subject: subject.clone(),
                remaining,
            });
        }
        let report = match (&read, expiry_status) {
            (Err(fault), _) => Err(format!("those read last stay in force: {fault}")),
            (Ok(_), ExpiryStatus::Expired) => Err("a certificate has ended".to_owned()),
            (Ok(_), ExpiryStatus::ExpiresSoon) => Err(format!(
                "a certificate ends in {} hours",
                remaining.unwrap_or_default().as_secs() / 3_600
            )),
            (Ok(_), ExpiryStatus::Valid) => Ok("as they are in the files".to_owned()),
        };
        state.lifecycle.set_report(&report_name(subject), report);
        state
            .telemetry
            .metrics
            .set_certificate(subject, current.not_after, read.is_ok());
        self.0.insert(
            subject.clone(),
            CertificateReport {
                expiry_status,
                fault: read.err(),
            },
        );
        current
    }

    /// Removes the reports and metrics of subjects that the active policy no longer contains.
    fn retain_subjects(&mut self, state: &State, subjects: &[TlsSubject]) {
        self.0.retain(|subject, _| {
            let is_there = subjects.contains(subject);
            if !is_there {
                state.lifecycle.remove_report(&report_name(subject));
                state.telemetry.metrics.clear_certificate(subject);
            }
            is_there
        });
    }
}

fn remaining_validity<C>(material: &TlsMaterial<C>) -> Option<Duration> {
    material.not_after.map(|expiry| {
        expiry
            .duration_since(clock::wall_time())
            .unwrap_or_default()
    })
}

/// Rejects expired certificates, because every handshake would fail.
fn reject_expired<C>(material: TlsMaterial<C>) -> Result<TlsMaterial<C>, String> {
    match ExpiryStatus::from_remaining(remaining_validity(&material)) {
        ExpiryStatus::Expired => Err("a certificate in the files has ended; renew it".to_owned()),
        ExpiryStatus::ExpiresSoon | ExpiryStatus::Valid => Ok(material),
    }
}

/// Returns the name of the readiness report for the certificates of a subject.
fn report_name(subject: &TlsSubject) -> String {
    let [(_, kind), (_, name)] = subject.labels();
    format!("certificates-of-{kind}-{name}")
}

/// Raw content of the certificate files of one listener or backend. `paths` holds the paths of
/// chain, key and CA for error messages.
struct CertificateFiles {
    chain: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
    paths: [String; 3],
    content_hash: u64,
}

impl CertificateFiles {
    fn read_server(spec: &ListenerTlsSpec) -> Result<Self, String> {
        Self::read(Some(&spec.identity), spec.client_ca.as_deref())
    }

    fn read_client(spec: &BackendTlsSpec) -> Result<Self, String> {
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

    fn build_server(
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
            .map_err(|error| {
                format!(
                    "{} and {} do not fit together: {error}",
                    self.paths[0], self.paths[1]
                )
            })?;
        config.alpn_protocols = alpn(spec.protocol);
        Ok(TlsMaterial {
            config: Arc::new(config),
            content_hash: self.content_hash,
            generation: store.next_generation(),
            not_after,
        })
    }

    fn build_client(
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
                config.map_err(|error| {
                    format!(
                        "{} and {} do not fit together: {error}",
                        self.paths[0], self.paths[1]
                    )
                })?,
                earlier_expiry(not_after, ca_expiry),
            )
        } else {
            (builder.with_no_client_auth(), ca_expiry)
        };
        config.alpn_protocols = alpn(spec.protocol);
        Ok(TlsMaterial {
            config: Arc::new(config),
            content_hash: self.content_hash,
            generation: store.next_generation(),
            not_after,
        })
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

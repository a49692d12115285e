//! Reading certificate files, and reading them again when they change.
//!
//! Files are looked at by content: a Secret is mounted as links that are swapped, and times lie. A set of policies whose files cannot be
//! read or do not fit together is refused like any other fault. Files that become so later change nothing: what was read last stays
//! in force, and an event, a metric and the readiness report say so. A certificate that has ended is such a fault; of one that is near
//! its end the same is said.

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
    policy::snapshot::{ClientTlsSpec, KeyPair, Protocol, ServerTlsSpec, Snapshot},
    state::{
        State,
        tls::{Fresh, Material, TlsStore},
    },
    telemetry::event::Event,
    transport::certificate,
};

/// A certificate that ends so soon is worth a warning: issuers renew at a third of the time left, and thirty days are usual.
const SOON: Duration = Duration::from_hours(24 * 7);

/// Reads everything that a set of policies needs and that is not known yet.
///
/// # Errors
/// Each fault with the place in the policy that names the file.
pub(super) fn load(snapshot: &Snapshot, store: &TlsStore) -> Result<Fresh, Vec<String>> {
    let (mut fresh, mut faults) = (Fresh::default(), Vec::new());
    for spec in snapshot
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
        .filter(|spec| store.server(spec).is_none())
    {
        match Files::of_server(spec)
            .and_then(|files| files.server(spec, store))
            .and_then(in_time)
        {
            Ok(material) => drop(fresh.servers.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.place)),
        }
    }
    for spec in snapshot
        .backends
        .iter()
        .filter_map(|backend| backend.tls.as_ref())
        .filter(|spec| store.client(spec).is_none())
    {
        match Files::of_client(spec)
            .and_then(|files| files.client(spec, store))
            .and_then(in_time)
        {
            Ok(material) => drop(fresh.clients.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.place)),
        }
    }
    if faults.is_empty() {
        Ok(fresh)
    } else {
        Err(faults)
    }
}

/// Follows the files of the policies in force.
pub(super) async fn follow(state: Arc<State>, every: Duration) {
    let mut told = Told::default();
    loop {
        let live = state.live.load_full();
        let (mut fresh, mut owners) = (Fresh::default(), Vec::new());
        for listener in &live.snapshot.listeners {
            let Some((spec, known)) = listener
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.server(spec)?)))
            else {
                continue;
            };
            let owner = format!("listener {}", listener.name);
            let read = Files::of_server(spec).and_then(|files| {
                if files.content == known.content {
                    Ok(known.clone())
                } else {
                    files.server(spec, &state.tls)
                }
            });
            fresh
                .servers
                .insert(spec.clone(), told.settle(&state, &owner, read, &known));
            owners.push(owner);
        }
        for backend in &live.snapshot.backends {
            let Some((spec, known)) = backend
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.client(spec)?)))
            else {
                continue;
            };
            let owner = format!("backend {}", backend.name);
            let read = Files::of_client(spec).and_then(|files| {
                if files.content == known.content {
                    Ok(known.clone())
                } else {
                    files.client(spec, &state.tls)
                }
            });
            fresh
                .clients
                .insert(spec.clone(), told.settle(&state, &owner, read, &known));
            owners.push(owner);
        }
        state.tls.put(&fresh);
        told.forget(&state, &owners);
        clock::sleep(every).await;
    }
}

/// What was said last of each owner of certificates, so that it is not said again.
#[derive(Debug, Default)]
struct Told(HashMap<String, Said>);

/// What was said of an owner.
#[derive(Debug)]
struct Said {
    time: Time,
    fault: Option<String>,
}

/// What is left of a certificate's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    Enough,
    Little,
    None,
}

impl Time {
    fn of(left: Option<Duration>) -> Self {
        match left {
            Some(Duration::ZERO) => Self::None,
            Some(left) if left <= SOON => Self::Little,
            Some(_) | None => Self::Enough,
        }
    }
}

impl Told {
    /// What is in force after a reading: what was read, or what was known; and says what is new about it.
    fn settle<C>(
        &mut self,
        state: &State,
        owner: &str,
        read: Result<Material<C>, String>,
        known: &Material<C>,
    ) -> Material<C> {
        let told = self.0.get(owner);
        let read = read.and_then(|material| {
            if material.generation == known.generation {
                Ok(material)
            } else {
                in_time(material)
            }
        });
        let now = match &read {
            Ok(material) if material.generation != known.generation => {
                state.telemetry.emit(Event::CertificateChanged {
                    owner: owner.to_owned(),
                });
                material.clone()
            }
            Ok(material) => material.clone(),
            Err(fault) => {
                if told.is_none_or(|told| told.fault.as_ref() != Some(fault)) {
                    state.telemetry.emit(Event::CertificateRefused {
                        owner: owner.to_owned(),
                        why: fault.clone(),
                    });
                }
                known.clone()
            }
        };
        let left = left(&now);
        let time = Time::of(left);
        if let Some(left) =
            left.filter(|_| time != Time::Enough && told.is_none_or(|told| told.time != time))
        {
            state.telemetry.emit(Event::CertificateExpiring {
                owner: owner.to_owned(),
                left,
            });
        }
        let report = match (&read, time) {
            (Err(fault), _) => Err(format!("those read last stay in force: {fault}")),
            (Ok(_), Time::None) => Err("a certificate has ended".to_owned()),
            (Ok(_), Time::Little) => Err(format!(
                "a certificate ends in {} hours",
                left.unwrap_or_default().as_secs() / 3_600
            )),
            (Ok(_), Time::Enough) => Ok("as they are in the files".to_owned()),
        };
        state.lifecycle.report(&report_of(owner), report);
        state
            .telemetry
            .metrics
            .certificate(owner, now.not_after, read.is_ok());
        self.0.insert(
            owner.to_owned(),
            Said {
                time,
                fault: read.err(),
            },
        );
        now
    }

    /// Takes back what was said of owners that are gone.
    fn forget(&mut self, state: &State, owners: &[String]) {
        self.0.retain(|owner, _| {
            let is_there = owners.contains(owner);
            if !is_there {
                state.lifecycle.retract(&report_of(owner));
                state.telemetry.metrics.forget_certificate(owner);
            }
            is_there
        });
    }
}

fn left<C>(material: &Material<C>) -> Option<Duration> {
    material
        .not_after
        .map(|end| end.duration_since(clock::wall()).unwrap_or_default())
}

/// Refuses what would make every handshake fail.
fn in_time<C>(material: Material<C>) -> Result<Material<C>, String> {
    match Time::of(left(&material)) {
        Time::None => Err("a certificate in the files has ended; renew it".to_owned()),
        Time::Little | Time::Enough => Ok(material),
    }
}

/// The name under which readiness reports on an owner's certificates.
fn report_of(owner: &str) -> String {
    format!("certificates-of-{}", owner.replace(' ', "-"))
}

/// The content of the files of one owner.
struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
    names: [String; 3],
    content: u64,
}

impl Files {
    fn of_server(spec: &ServerTlsSpec) -> Result<Self, String> {
        Self::read(Some(&spec.identity), spec.client_ca.as_deref())
    }

    fn of_client(spec: &ClientTlsSpec) -> Result<Self, String> {
        Self::read(spec.identity.as_ref(), spec.ca.as_deref())
    }

    fn read(identity: Option<&KeyPair>, authorities: Option<&Path>) -> Result<Self, String> {
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
        let authorities_read = authorities.map(read).transpose()?;
        // Any hash will do that tells one content from another; it is kept in memory only.
        let content = BuildHasherDefault::<DefaultHasher>::default().hash_one((
            &chain,
            &key,
            &authorities_read,
        ));
        let names = [
            name(identity.map(|pair| pair.cert.as_path())),
            name(identity.map(|pair| pair.key.as_path())),
            name(authorities),
        ];
        Ok(Self {
            chain,
            key,
            authorities: authorities_read,
            names,
            content,
        })
    }

    fn server(
        &self,
        spec: &ServerTlsSpec,
        store: &TlsStore,
    ) -> Result<Material<ServerConfig>, String> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut authorities_end = None;
        let builder = match self.roots()? {
            None => builder.with_no_client_auth(),
            Some((roots, end)) => {
                authorities_end = end;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
                let verifier = if spec.is_client_optional {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                builder.with_client_cert_verifier(
                    verifier
                        .build()
                        .map_err(|error| format!("{}: {error}", self.names[2]))?,
                )
            }
        };
        let chain = self.chain()?;
        let not_after = earlier(earliest(&chain), authorities_end);
        let mut config = builder
            .with_single_cert(chain, self.key()?)
            .map_err(|error| {
                format!(
                    "{} and {} do not fit together: {error}",
                    self.names[0], self.names[1]
                )
            })?;
        config.alpn_protocols = alpn(spec.protocol);
        Ok(Material {
            config: Arc::new(config),
            content: self.content,
            generation: store.next_generation(),
            not_after,
        })
    }

    fn client(
        &self,
        spec: &ClientTlsSpec,
        store: &TlsStore,
    ) -> Result<Material<ClientConfig>, String> {
        let (roots, authorities_end) = match self.roots()? {
            Some(read) => read,
            None => (system_roots()?, None),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
            .build()
            .map_err(|error| format!("{}: {error}", self.names[2]))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier);
        let (mut config, not_after) = if spec.identity.is_some() {
            let chain = self.chain()?;
            let not_after = earliest(&chain);
            let config = builder.with_client_auth_cert(chain, self.key()?);
            (
                config.map_err(|error| {
                    format!(
                        "{} and {} do not fit together: {error}",
                        self.names[0], self.names[1]
                    )
                })?,
                earlier(not_after, authorities_end),
            )
        } else {
            (builder.with_no_client_auth(), authorities_end)
        };
        config.alpn_protocols = alpn(spec.protocol);
        Ok(Material {
            config: Arc::new(config),
            content: self.content,
            generation: store.next_generation(),
            not_after,
        })
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.chain)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{} is not PEM: {error}", self.names[0]))?;
        if chain.is_empty() {
            Err(format!("there is no certificate in {}", self.names[0]))
        } else {
            Ok(chain)
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("there is no key in {}: {error}", self.names[1]))
    }

    /// The authorities, and when the last of them ends.
    fn roots(&self) -> Result<Option<(RootCertStore, Option<SystemTime>)>, String> {
        let Some(bytes) = &self.authorities else {
            return Ok(None);
        };
        let (mut roots, mut end) = (RootCertStore::empty(), None);
        for authority in CertificateDer::pem_slice_iter(bytes) {
            let authority =
                authority.map_err(|error| format!("{} is not PEM: {error}", self.names[2]))?;
            end = end.max(certificate::not_after(&authority));
            roots.add(authority).map_err(|error| {
                format!("{} holds what is no authority: {error}", self.names[2])
            })?;
        }
        if roots.is_empty() {
            Err(format!("there is no certificate in {}", self.names[2]))
        } else {
            Ok(Some((roots, end)))
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

fn earliest(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    chain
        .iter()
        .filter_map(|certificate| certificate::not_after(certificate))
        .min()
}

fn earlier(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
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

//! Endpoints behind a name: A, AAAA and SRV, with the time until which the answer holds.
//!
//! Both families of addresses are asked for by themselves, and a failure of one is a failure of all: else one lost packet would look
//! as if half of the endpoints had left. That a family has no addresses is no failure, and some name servers cannot even say that
//! (RFC 4074): a family that never had any does not count. With a search list a name may be found further up for one family and
//! not at all for the other, so that only both together can say that it does not exist. How long an answer holds is its TTL, within
//! the bounds of the policy.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    lookup_ip::LookupIp,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, rdata::SRV},
};
use tokio::task::JoinSet;

use super::Found;
use crate::policy::snapshot::{Address, DnsSpec, EndpointSpec};

/// How long one question to a name server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is asked again.
const ATTEMPTS: usize = 2;

/// Names that one SRV answer may lead to; more are a mistake.
const MAX_TARGETS: usize = 1_000;

/// Names that are looked up at once.
const AT_ONCE: usize = 16;

/// Which families of addresses a name has had.
#[derive(Debug, Default)]
pub(super) struct Families {
    v4: bool,
    v6: bool,
}

/// Why there are no addresses.
#[derive(Debug)]
enum Fault {
    /// The name server says that there are none.
    NotThere(String),
    /// It says nothing that could be understood.
    Failed(String),
}

impl Fault {
    fn words(self) -> String {
        match self {
            Self::NotThere(words) | Self::Failed(words) => words,
        }
    }
}

/// Asks name servers.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    v4: TokioResolver,
    v6: TokioResolver,
}

impl Resolver {
    /// Makes a resolver that asks this name server, or those of the system.
    pub(super) fn new(name_server: Option<SocketAddr>) -> Result<Self, String> {
        let make = |strategy| {
            resolver(name_server, strategy)
                .map_err(|error| format!("the system's resolver cannot be set up: {error}"))
        };
        Ok(Self {
            v4: make(LookupIpStrategy::Ipv4Only)?,
            v6: make(LookupIpStrategy::Ipv6Only)?,
        })
    }

    /// The endpoints of a name.
    pub(super) async fn endpoints(
        &self,
        spec: &DnsSpec,
        families: &mut Families,
    ) -> Result<Found, String> {
        let Some(port) = spec.port else {
            return self.services(&spec.name, families).await;
        };
        let addresses = self
            .addresses(&spec.name)
            .await
            .settle(&spec.name, families)
            .map_err(Fault::words)?;
        let endpoints = addresses
            .all
            .into_iter()
            .map(|address| EndpointSpec::at(Address::Tcp(SocketAddr::new(address, port))));
        Ok(Found {
            endpoints: endpoints.collect(),
            valid_until: addresses.valid_until,
        })
    }

    async fn addresses(&self, name: &str) -> Answers {
        let (v4, v6) = tokio::join!(self.v4.lookup_ip(name), self.v6.lookup_ip(name));
        Answers { v4, v6 }
    }

    /// The targets of a service (RFC 2782): each with its port, weight and priority.
    async fn services(&self, name: &str, families: &mut Families) -> Result<Found, String> {
        let answer = self
            .v4
            .srv_lookup(name)
            .await
            .map_err(|error| fault(name, &error).words())?;
        let mut valid_until = answer.valid_until();
        let records = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) if !service.target.is_root() && service.port != 0 => {
                    Some(service)
                }
                _ => None,
            });
        let services: Vec<_> = records.collect();
        if services.len() > MAX_TARGETS {
            return Err(format!(
                "{name} has {} SRV records, more than {MAX_TARGETS}",
                services.len()
            ));
        }
        let mut priorities: Vec<u16> = services.iter().map(|service| service.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let (mut endpoints, mut missing): (HashMap<Address, EndpointSpec>, Option<String>) =
            (HashMap::new(), None);
        for (service, answers) in self.targets(&services).await {
            let addresses = match answers.settle(&service.target.to_string(), families) {
                Ok(addresses) => addresses,
                // One that has just gone is no reason to give up the others.
                Err(Fault::NotThere(words)) => {
                    missing = Some(words);
                    continue;
                }
                Err(Fault::Failed(words)) => return Err(words),
            };
            valid_until = valid_until.min(addresses.valid_until);
            // Counted from 0, so that they are like those that are written; a weight of 0 is the smallest there is.
            let priority =
                u32::try_from(priorities.partition_point(|earlier| *earlier < service.priority))
                    .unwrap_or(u32::MAX);
            let weight = NonZeroU32::new(service.weight.into()).unwrap_or(NonZeroU32::MIN);
            for address in addresses.all {
                let address = Address::Tcp(SocketAddr::new(address, service.port));
                endpoints
                    .entry(address.clone())
                    .or_insert_with(|| EndpointSpec {
                        weight,
                        priority,
                        ..EndpointSpec::at(address)
                    });
            }
        }
        if endpoints.is_empty() {
            return Err(missing.unwrap_or_else(|| format!("{name} has no SRV records")));
        }
        Ok(Found {
            endpoints: endpoints.into_values().collect(),
            valid_until,
        })
    }

    /// Looks up several targets, some at once.
    async fn targets<'a>(&self, services: &[&'a SRV]) -> Vec<(&'a SRV, Answers)> {
        let mut all = Vec::with_capacity(services.len());
        for some in services.chunks(AT_ONCE) {
            let mut lookups = JoinSet::new();
            for (index, service) in some.iter().enumerate() {
                let (resolver, name) = (self.clone(), service.target.to_string());
                lookups.spawn(async move { (index, resolver.addresses(&name).await) });
            }
            let mut found = lookups.join_all().await;
            found.sort_unstable_by_key(|(index, _)| *index);
            all.extend(
                some.iter()
                    .copied()
                    .zip(found.into_iter().map(|(_, answers)| answers)),
            );
        }
        all
    }
}

/// What name servers said of a name.
struct Answers {
    v4: Result<LookupIp, NetError>,
    v6: Result<LookupIp, NetError>,
}

/// The addresses of a name, and until when they are.
struct Addresses {
    all: BTreeSet<IpAddr>,
    valid_until: Instant,
}

impl Answers {
    /// What is to be made of it, given the families that the name has had.
    fn settle(self, name: &str, families: &mut Families) -> Result<Addresses, Fault> {
        let (mut all, mut valid_until, mut missing, mut failed) =
            (BTreeSet::new(), None::<Instant>, None, None);
        for (answer, has_had) in [(self.v4, &mut families.v4), (self.v6, &mut families.v6)] {
            match answer {
                Ok(found) => {
                    all.extend(found.iter());
                    *has_had = true;
                    valid_until = Some(valid_until.map_or(found.valid_until(), |earlier| {
                        earlier.min(found.valid_until())
                    }));
                }
                Err(error) => match fault(name, &error) {
                    Fault::NotThere(words) => missing = missing.or(Some(words)),
                    Fault::Failed(words) => failed = Some((words, *has_had)),
                },
            }
        }
        match (valid_until, failed, missing) {
            (Some(valid_until), None | Some((_, false)), _) => Ok(Addresses { all, valid_until }),
            (_, Some((words, _)), _) => Err(Fault::Failed(words)),
            (None, None, missing) => Err(Fault::NotThere(
                missing.unwrap_or_else(|| format!("{name} has no addresses")),
            )),
        }
    }
}

fn resolver(
    name_server: Option<SocketAddr>,
    strategy: LookupIpStrategy,
) -> Result<TokioResolver, NetError> {
    let mut builder = match name_server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
                .into_iter()
                .collect();
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            TokioResolver::builder_with_config(
                ResolverConfig::from_parts(None, Vec::new(), vec![server]),
                TokioRuntimeProvider::default(),
            )
        }
    };
    let options = builder.options_mut();
    options.ip_strategy = strategy;
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    builder.build()
}

fn fault(name: &str, error: &NetError) -> Fault {
    match error {
        _ if error.is_nx_domain() => Fault::NotThere(format!("{name} does not exist")),
        _ if error.is_no_records_found() => Fault::NotThere(format!("{name} has no such records")),
        _ => Fault::Failed(format!("{name} cannot be resolved: {error}")),
    }
}

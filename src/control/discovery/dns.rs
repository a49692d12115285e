//! Endpoints behind a name: A, AAAA and SRV, with the time until which the answer holds.
//!
//! Both families of addresses are asked for by themselves, and a failure of one is a failure of all: else one lost packet would look
//! as if half of the endpoints had left. That a family has no addresses is no failure. Nothing is kept between two lookups; how
//! long an answer holds is its TTL, within the bounds of the policy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};

use super::Found;
use crate::policy::snapshot::{Address, DnsSpec, EndpointSpec};

/// How long one question to a name server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is asked again.
const ATTEMPTS: usize = 2;

/// Names that one SRV answer may lead to; more are a mistake.
const MAX_TARGETS: usize = 1_000;

/// Asks name servers.
#[derive(Debug)]
pub(super) struct Resolver {
    v4: TokioResolver,
    v6: TokioResolver,
}

impl Resolver {
    /// Makes a resolver that asks this name server, or those of the system.
    pub(super) fn new(name_server: Option<SocketAddr>) -> Result<Self, String> {
        let make = |strategy| resolver(name_server, strategy).map_err(|error| format!("the system's resolver cannot be set up: {error}"));
        Ok(Self { v4: make(LookupIpStrategy::Ipv4Only)?, v6: make(LookupIpStrategy::Ipv6Only)? })
    }

    /// The endpoints of a name.
    pub(super) async fn endpoints(&self, spec: &DnsSpec) -> Result<Found, String> {
        let Some(port) = spec.port else { return self.services(&spec.name).await };
        let (addresses, valid_until) = self.addresses(&spec.name).await?;
        let endpoints = addresses.into_iter().map(|address| EndpointSpec::at(Address::Tcp(SocketAddr::new(address, port))));
        Ok(Found { endpoints: endpoints.collect(), valid_until })
    }

    /// The addresses of a name, and until when they are.
    async fn addresses(&self, name: &str) -> Result<(BTreeSet<IpAddr>, Instant), String> {
        let (v4, v6) = tokio::join!(self.v4.lookup_ip(name), self.v6.lookup_ip(name));
        let mut addresses = BTreeSet::new();
        let mut valid_until: Option<Instant> = None;
        for found in [v4, v6] {
            match found {
                Ok(found) => {
                    addresses.extend(found.iter());
                    let until = found.valid_until();
                    valid_until = Some(valid_until.map_or(until, |earlier| earlier.min(until)));
                }
                Err(error) if error.is_no_records_found() && !error.is_nx_domain() => {}
                Err(error) => return Err(fault(name, &error)),
            }
        }
        valid_until.map(|until| (addresses, until)).ok_or_else(|| format!("{name} has no addresses"))
    }

    /// The targets of a service (RFC 2782): each with its port, weight and priority.
    async fn services(&self, name: &str) -> Result<Found, String> {
        let answer = self.v4.srv_lookup(name).await.map_err(|error| fault(name, &error))?;
        let mut valid_until = answer.valid_until();
        let records = answer.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(service) if !service.target.is_root() => Some(service),
            _ => None,
        });
        let services: Vec<_> = records.take(MAX_TARGETS).collect();
        let mut priorities: Vec<u16> = services.iter().map(|service| service.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let mut endpoints: Vec<EndpointSpec> = Vec::new();
        for service in services {
            let (addresses, until) = self.addresses(&service.target.to_string()).await?;
            valid_until = valid_until.min(until);
            // Counted from 0, so that they are like those that are written; a weight of 0 is the smallest there is.
            let priority = priorities.partition_point(|earlier| *earlier < service.priority);
            let weight = NonZeroU32::new(service.weight.into()).unwrap_or(NonZeroU32::MIN);
            for address in addresses {
                let address = Address::Tcp(SocketAddr::new(address, service.port));
                if !endpoints.iter().any(|known| known.address == address) {
                    endpoints.push(EndpointSpec { weight, priority: u32::try_from(priority).unwrap_or(u32::MAX), ..EndpointSpec::at(address) });
                }
            }
        }
        if endpoints.is_empty() { Err(format!("{name} has no SRV records")) } else { Ok(Found { endpoints, valid_until }) }
    }
}

fn resolver(name_server: Option<SocketAddr>, strategy: LookupIpStrategy) -> Result<TokioResolver, NetError> {
    let mut builder = match name_server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].into_iter().collect();
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            TokioResolver::builder_with_config(ResolverConfig::from_parts(None, Vec::new(), vec![server]), TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.ip_strategy = strategy;
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    builder.build()
}

fn fault(name: &str, error: &NetError) -> String {
    match error {
        _ if error.is_nx_domain() => format!("{name} does not exist"),
        _ if error.is_no_records_found() => format!("{name} has no such records"),
        _ => format!("{name} cannot be resolved: {error}"),
    }
}

//! Resolves a DNS name to endpoints: A, AAAA and SRV records, with the time at which the
//! response expires.
//!
//! This module decides which combinations of responses count as a result. It does not know the
//! previous endpoints or the TTL bounds of the policy; its caller applies both.
//!
//! - The resolver queries A and AAAA separately. If one of the two fails, the whole lookup
//!   fails. Otherwise one lost packet would look as if half of the endpoints had disappeared.
//! - A response without records for one family is not a failure.
//! - Some name servers cannot express "no such records" (RFC 4074). The failure of a family is
//!   therefore ignored under two conditions: the family has never returned an address for the
//!   backend, and the other family has returned one.
//! - With a search list, each family may resolve at a different suffix. A name counts as not
//!   found only if neither family has addresses and neither has failed.

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

use crate::policy::snapshot::{DnsSpec, EndpointAddress, EndpointSpec};

/// Endpoints of a name, and the time at which the DNS response expires.
#[derive(Debug)]
pub(super) struct ResolvedEndpoints {
    pub(super) endpoints: Vec<EndpointSpec>,
    pub(super) valid_until: Instant,
}

/// Timeout of one DNS query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Retries of one DNS query after its first failure, as hickory-resolver counts them.
const QUERY_ATTEMPTS: usize = 2;

/// Maximum number of SRV records in a response. A larger response is rejected as a
/// misconfiguration.
const MAX_SRV_TARGETS: usize = 1_000;

/// Maximum number of SRV targets that are resolved concurrently.
const MAX_PARALLEL_LOOKUPS: usize = 16;

/// Address families that have returned at least one address since the discovery task started.
#[derive(Debug, Default)]
pub(super) struct SeenAddressFamilies {
    v4: bool,
    v6: bool,
}

/// Reason why a lookup returned no addresses.
#[derive(Debug)]
enum DnsError {
    /// The name server states that the name or its records do not exist.
    NotFound(String),
    /// The query failed: timeout, network error or server failure.
    Failed(String),
}

impl DnsError {
    fn into_message(self) -> String {
        match self {
            Self::NotFound(message) | Self::Failed(message) => message,
        }
    }
}

/// DNS client with one resolver per address family. It caches nothing.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    v4: TokioResolver,
    v6: TokioResolver,
}

impl Resolver {
    /// Creates a resolver for `name_server`, or for the system configuration if that is `None`.
    pub(super) fn new(name_server: Option<SocketAddr>) -> Result<Self, String> {
        let make = |strategy| {
            build_resolver(name_server, strategy)
                .map_err(|error| format!("the system's resolver cannot be set up: {error}"))
        };
        Ok(Self {
            v4: make(LookupIpStrategy::Ipv4Only)?,
            v6: make(LookupIpStrategy::Ipv6Only)?,
        })
    }

    /// Resolves the name of a backend. With a port it queries A and AAAA, without a port it
    /// queries SRV.
    pub(super) async fn resolve_endpoints(
        &self,
        spec: &DnsSpec,
        seen_families: &mut SeenAddressFamilies,
    ) -> Result<ResolvedEndpoints, String> {
        let Some(port) = spec.port else {
            return self.resolve_srv(&spec.name, seen_families).await;
        };
        let addresses = self
            .lookup_addresses(&spec.name)
            .await
            .into_addresses(&spec.name, seen_families)
            .map_err(DnsError::into_message)?;
        let endpoints = addresses.ip_addresses.into_iter().map(|address| {
            EndpointSpec::from_address(EndpointAddress::Tcp(SocketAddr::new(address, port)))
        });
        Ok(ResolvedEndpoints {
            endpoints: endpoints.collect(),
            valid_until: addresses.valid_until,
        })
    }

    async fn lookup_addresses(&self, name: &str) -> AddressLookups {
        let (v4, v6) = tokio::join!(self.v4.lookup_ip(name), self.v6.lookup_ip(name));
        AddressLookups { v4, v6 }
    }

    /// Resolves SRV records (RFC 2782) and the addresses of their targets. Each endpoint takes
    /// port, weight and priority from its record.
    async fn resolve_srv(
        &self,
        name: &str,
        seen_families: &mut SeenAddressFamilies,
    ) -> Result<ResolvedEndpoints, String> {
        let response = self
            .v4
            .srv_lookup(name)
            .await
            .map_err(|error| classify_error(name, &error).into_message())?;
        let mut valid_until = response.valid_until();
        let records = response
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) if !service.target.is_root() && service.port != 0 => {
                    Some(service)
                }
                _ => None,
            });
        let services: Vec<_> = records.collect();
        if services.len() > MAX_SRV_TARGETS {
            return Err(format!(
                "{name} has {} SRV records, more than {MAX_SRV_TARGETS}",
                services.len()
            ));
        }
        let priorities = SrvPriorities::from_services(&services);
        let (mut endpoints, mut missing): (HashMap<EndpointAddress, EndpointSpec>, Option<String>) =
            (HashMap::new(), None);
        for (service, address_lookups) in self.lookup_srv_targets(&services).await {
            let addresses =
                match address_lookups.into_addresses(&service.target.to_string(), seen_families) {
                    Ok(addresses) => addresses,
                    // A target that was just removed must not invalidate the other targets.
                    Err(DnsError::NotFound(message)) => {
                        missing = Some(message);
                        continue;
                    }
                    Err(DnsError::Failed(message)) => return Err(message),
                };
            valid_until = valid_until.min(addresses.valid_until);
            let priority = priorities.rank(service.priority);
            // An SRV weight of 0 becomes 1, the smallest weight.
            let weight = NonZeroU32::new(service.weight.into()).unwrap_or(NonZeroU32::MIN);
            for address in addresses.ip_addresses {
                let address = EndpointAddress::Tcp(SocketAddr::new(address, service.port));
                endpoints
                    .entry(address.clone())
                    .or_insert_with(|| EndpointSpec {
                        weight,
                        priority,
                        ..EndpointSpec::from_address(address)
                    });
            }
        }
        if endpoints.is_empty() {
            return Err(missing.unwrap_or_else(|| format!("{name} has no SRV records")));
        }
        Ok(ResolvedEndpoints {
            endpoints: endpoints.into_values().collect(),
            valid_until,
        })
    }

    /// Resolves the addresses of all targets, at most [`MAX_PARALLEL_LOOKUPS`] at a time. The
    /// order of the targets is preserved.
    async fn lookup_srv_targets<'a>(&self, services: &[&'a SRV]) -> Vec<(&'a SRV, AddressLookups)> {
        let mut all = Vec::with_capacity(services.len());
        for chunk in services.chunks(MAX_PARALLEL_LOOKUPS) {
            let mut lookups = JoinSet::new();
            for (index, service) in chunk.iter().enumerate() {
                let (resolver, name) = (self.clone(), service.target.to_string());
                lookups.spawn(async move { (index, resolver.lookup_addresses(&name).await) });
            }
            let mut found = lookups.join_all().await;
            found.sort_unstable_by_key(|(index, _)| *index);
            all.extend(
                chunk.iter().copied().zip(
                    found
                        .into_iter()
                        .map(|(_, address_lookups)| address_lookups),
                ),
            );
        }
        all
    }
}

/// Distinct priorities of SRV records, in ascending order.
struct SrvPriorities(Vec<u16>);

impl SrvPriorities {
    fn from_services(services: &[&SRV]) -> Self {
        let mut priorities: Vec<u16> = services.iter().map(|service| service.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        Self(priorities)
    }

    /// Maps an SRV priority to 0, 1, 2 and so on, like the priorities in a policy.
    fn rank(&self, priority: u16) -> u32 {
        let rank = self.0.partition_point(|earlier| *earlier < priority);
        u32::try_from(rank).unwrap_or(u32::MAX)
    }
}

/// Responses to the A and AAAA queries for one name.
struct AddressLookups {
    v4: Result<LookupIp, NetError>,
    v6: Result<LookupIp, NetError>,
}

/// Addresses of one name, and the time at which the first of its responses expires.
struct ResolvedAddresses {
    ip_addresses: BTreeSet<IpAddr>,
    valid_until: Instant,
}

impl AddressLookups {
    /// Merges both families into one result, and records in `seen_families` which of them
    /// returned addresses.
    fn into_addresses(
        self,
        name: &str,
        seen_families: &mut SeenAddressFamilies,
    ) -> Result<ResolvedAddresses, DnsError> {
        let (mut all, mut valid_until, mut missing, mut failed) =
            (BTreeSet::new(), None::<Instant>, None, None);
        for (response, was_seen) in [
            (self.v4, &mut seen_families.v4),
            (self.v6, &mut seen_families.v6),
        ] {
            match response {
                Ok(found) => {
                    all.extend(found.iter());
                    *was_seen = true;
                    valid_until = Some(valid_until.map_or(found.valid_until(), |earlier| {
                        earlier.min(found.valid_until())
                    }));
                }
                Err(error) => match classify_error(name, &error) {
                    DnsError::NotFound(message) => missing = missing.or(Some(message)),
                    DnsError::Failed(message) => failed = Some((message, *was_seen)),
                },
            }
        }
        match (valid_until, failed, missing) {
            (Some(valid_until), None | Some((_, false)), _) => Ok(ResolvedAddresses {
                ip_addresses: all,
                valid_until,
            }),
            (_, Some((message, _)), _) => Err(DnsError::Failed(message)),
            (None, None, missing) => Err(DnsError::NotFound(
                missing.unwrap_or_else(|| format!("{name} has no addresses")),
            )),
        }
    }
}

fn build_resolver(
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
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    builder.build()
}

fn classify_error(name: &str, error: &NetError) -> DnsError {
    match error {
        _ if error.is_nx_domain() => DnsError::NotFound(format!("{name} does not exist")),
        _ if error.is_no_records_found() => {
            DnsError::NotFound(format!("{name} has no such records"))
        }
        _ => DnsError::Failed(format!("{name} cannot be resolved: {error}")),
    }
}

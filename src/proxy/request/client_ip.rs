//! Determines the client's address of a request that passed proxies.
//!
//! Each proxy appends the address of its own client to `x-forwarded-for`. Entries before that
//! may be forged. The list is therefore read from its end, for as long as the sender of an
//! entry is a trusted proxy. The first address that is not a trusted proxy is the client's.
//! Without trusted proxies the header is ignored.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::{message::headers::Headers, proxy::wire::header_names::FORWARDED_FOR};

/// Returns the client's address in canonical form, so that an IPv4-mapped address is IPv4.
///
/// `peer_address` is the other end of the connection.
pub(crate) fn resolve(
    peer_address: IpAddr,
    headers: &Headers,
    trusted_proxies: &[IpNet],
) -> IpAddr {
    let mut client_ip = peer_address.to_canonical();
    if trusted_proxies.is_empty() {
        return client_ip;
    }
    let lines = headers.get_all(FORWARDED_FOR).rev();
    let mut hops = lines.flat_map(|line| line.rsplit(|byte| *byte == b','));
    while trusted_proxies
        .iter()
        .any(|range| range.contains(&client_ip))
    {
        // A trusted proxy appends valid addresses only, so the search ends at an invalid entry.
        let Some(hop) = hops.next().and_then(parse_address) else {
            break;
        };
        client_ip = hop.to_canonical();
    }
    client_ip
}

/// Parses an address with or without a port; an IPv6 address may have brackets.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let parse_without_port = || {
        text.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text)
            .parse()
            .ok()
    };
    text.parse()
        .map(|address: SocketAddr| address.ip())
        .ok()
        .or_else(parse_without_port)
}

#[cfg(test)]
mod tests;

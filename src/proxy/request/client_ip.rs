//! Where a request is from, when proxies stand in between.
//!
//! Each proxy appends the address that it sees to `x-forwarded-for`; what stands before was told by others and may be a lie. So the list
//! is read from its end, as far as those who wrote it are trusted, and the first address that is not a trusted proxy's is the client's.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use crate::proxy::wire::header_names::FORWARDED_FOR;

/// The client's address, in its canonical form; `peer` is at the other end of the connection.
pub(crate) fn resolve(
    peer_address: IpAddr,
    headers: &HeaderMap,
    trusted_proxies: &[IpNet],
) -> IpAddr {
    let mut client_ip = peer_address.to_canonical();
    if trusted_proxies.is_empty() {
        return client_ip;
    }
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while trusted_proxies
        .iter()
        .any(|range| range.contains(&client_ip))
    {
        // What cannot be read was not written by a proxy that is to be trusted.
        let Some(hop) = hops.next().and_then(parse_address) else {
            break;
        };
        client_ip = hop.to_canonical();
    }
    client_ip
}

/// An address with or without a port.
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

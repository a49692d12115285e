//! Where a request is from, when proxies stand in between.
//!
//! Each proxy appends the address that it sees to `x-forwarded-for`; what stands before was told by others and may be a lie. So the list
//! is read from its end, as far as those who wrote it are trusted, and the first address that is not a trusted proxy's is the client's.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address, in its canonical form; `peer` is at the other end of the connection.
pub(super) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut source = peer.to_canonical();
    if trusted.is_empty() {
        return source;
    }
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut before = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while trusted.iter().any(|range| range.contains(&source)) {
        // What cannot be read was not written by a proxy that is to be trusted.
        let Some(told) = before.next().and_then(address) else {
            break;
        };
        source = told.to_canonical();
    }
    source
}

/// An address with or without a port.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bare = || {
        text.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text)
            .parse()
            .ok()
    };
    text.parse()
        .map(|address: SocketAddr| address.ip())
        .ok()
        .or_else(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_last_address_that_no_trusted_proxy_has() {
        let table: [(&str, &[&str], &str); 12] = [
            ("9.9.9.9", &[], "9.9.9.9"),
            ("9.9.9.9", &["1.1.1.1"], "9.9.9.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1 ,10.0.0.9"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.0.0.9"], "1.1.1.1"),
            ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
        ];
        let trusted = ["10.0.0.0/8".parse().expect("a range")];
        for (peer, told, expected) in table {
            let mut headers = HeaderMap::new();
            for line in told {
                headers.append(FORWARDED_FOR, line.parse().expect("a value"));
            }
            let (peer, expected): (IpAddr, IpAddr) = (
                peer.parse().expect("an address"),
                expected.parse().expect("an address"),
            );
            assert_eq!(of(peer, &headers, &trusted), expected, "{peer} {told:?}");
            assert_eq!(of(peer, &headers, &[]), peer.to_canonical());
        }
    }
}

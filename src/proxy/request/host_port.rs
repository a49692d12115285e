//! Checks a host with an optional port (RFC 3986 sections 3.2.2 and 3.2.3).
//!
//! Routing, the app and other proxies must agree on the host of a request. Anything that is not
//! exactly a registered name, an IPv4 address or a bracketed IPv6 address is therefore invalid.
//! The module does not know where the text comes from.

use std::net::Ipv6Addr;

/// Returns whether the text is a host with an optional port from 0 to 65535.
///
/// User information, an empty host, an empty port, an IPv6 zone and future address formats are
/// invalid.
pub(crate) fn is_valid(text: &str) -> bool {
    let (is_valid_host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            (address.parse::<Ipv6Addr>().is_ok(), port)
        }
        None => {
            let host_end = text.find(':').unwrap_or(text.len());
            (is_registered_name(&text[..host_end]), &text[host_end..])
        }
    };
    is_valid_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Returns whether two hosts are the same, without regard to case and to the default port of the
/// scheme.
pub(crate) fn are_equal(first: &str, second: &str, scheme: &str) -> bool {
    let default_port = if scheme.eq_ignore_ascii_case("https") {
        ":443"
    } else {
        ":80"
    };
    let without_default_port = |text| -> &str {
        let text: &str = text;
        text.strip_suffix(default_port).unwrap_or(text)
    };
    without_default_port(first).eq_ignore_ascii_case(without_default_port(second))
}

/// Returns whether the text is a registered name; an IPv4 address is one too.
fn is_registered_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_valid = match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()];
                digits
                    .iter()
                    .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit()))
            }
            byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
        if !is_valid {
            return false;
        }
    }
    !text.is_empty()
}

fn is_port(text: &str) -> bool {
    // `parse` alone would accept a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests;

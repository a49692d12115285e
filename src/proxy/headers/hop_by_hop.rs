//! Decides which header fields are forwarded and which belong to one hop only.
//!
//! Hop-by-hop fields are not forwarded (RFC 9110 section 7.6.1): a fixed list, and the fields
//! that `connection` nominates. `transfer-encoding` is retained, because the next hop is framed
//! by it.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    policy::snapshot::HeaderModifierSpec,
    proxy::wire::header_names::{DRAINING, STARTED_AT, WEIGHED},
};

/// Fields that are never forwarded, whether or not `connection` nominates them.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::UPGRADE,
    DRAINING,
    STARTED_AT,
    WEIGHED,
];

/// Expected maximum of fields that the proxy adds, besides those of filters. It sizes the
/// copied map.
const MAX_ADDED_HEADERS: usize = 12;

/// Copies the fields that are forwarded, with capacity for those that the proxy adds.
pub(crate) fn copy_end_to_end_headers(headers: &HeaderMap) -> HeaderMap {
    let mut nominated: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().unwrap_or_default().split(',').map(str::trim);
        // These options nominate no field for removal. A client must not be able to remove
        // fields that decide about framing, routing, access or caching.
        let protected_options = [
            "",
            "close",
            "keep-alive",
            "upgrade",
            "transfer-encoding",
            "content-length",
            "host",
            "authorization",
            "cache-control",
        ];
        nominated.extend(
            names
                .filter(|name| {
                    !protected_options
                        .iter()
                        .any(|option| name.eq_ignore_ascii_case(option))
                })
                .filter_map(|name| name.parse::<HeaderName>().ok()),
        );
    }
    let mut copied = HeaderMap::with_capacity(headers.len() + MAX_ADDED_HEADERS);
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name) && !nominated.contains(name))
    {
        copied.append(name.clone(), value.clone());
    }
    copied
}

/// Applies a header modifier filter: first removals, then replacements, then additions.
pub(crate) fn apply_modifier(headers: &mut HeaderMap, modifier: &HeaderModifierSpec) {
    for name in &modifier.remove {
        headers.remove(name);
    }
    for (name, value) in &modifier.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name.clone(), value.clone());
    }
}

/// Converts text into a header value.
///
/// # Errors
/// If the text has a character that a header value cannot hold.
pub(crate) fn parse_header_value(text: &str) -> pingora::Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| invalid_header_value())
}

/// Returns the error for a value that no header can hold.
pub(crate) fn invalid_header_value() -> pingora::BError {
    pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "a value of a header")
}

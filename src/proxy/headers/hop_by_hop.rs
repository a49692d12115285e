//! Decides which header fields are forwarded and which belong to one hop only.
//!
//! Hop-by-hop fields are not forwarded (RFC 9110 section 7.6.1): a fixed list, and the fields
//! that `connection` nominates. `transfer-encoding` is retained, because the next hop is framed
//! by it.

use http::header;

use crate::{
    message::headers::{Headers, NameSet, as_text},
    policy::snapshot::HeaderModifierSpec,
    proxy::wire::header_names::{DRAINING, STARTED_AT, WEIGHED},
};

/// Fields that are never forwarded, whether or not `connection` nominates them.
const HOP_BY_HOP: NameSet = NameSet::new(&[
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "upgrade",
    DRAINING,
    STARTED_AT,
    WEIGHED,
]);

/// Options of `connection` that nominate no field for removal. A client must not be able to remove
/// fields that decide about framing, routing, access or caching.
const PROTECTED_OPTIONS: [&str; 9] = [
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

/// Copies the fields that are forwarded, with capacity for those that the proxy adds.
pub(crate) fn copy_end_to_end_headers(headers: &Headers) -> Headers {
    let options = headers.get_all(header::CONNECTION).filter_map(as_text);
    let options = options.flat_map(|value| value.split(',').map(str::trim));
    let nominated: Vec<&str> = options
        .filter(|option| {
            let is_equal = |protected: &&str| protected.eq_ignore_ascii_case(option);
            !PROTECTED_OPTIONS.iter().any(is_equal)
        })
        .collect();
    headers.without(&HOP_BY_HOP, &nominated)
}

/// Applies a header modifier filter: first removals, then replacements, then additions.
pub(crate) fn apply_modifier(headers: &mut Headers, modifier: &HeaderModifierSpec) {
    for name in &modifier.remove {
        headers.remove(name);
    }
    for (name, value) in &modifier.set {
        headers.insert(name, value);
    }
    for (name, value) in &modifier.add {
        headers.append(name, value);
    }
}

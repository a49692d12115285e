//! Decides which fields may be in the trailers of a message.
//!
//! A recipient may merge trailers into the head. A field that decides about framing, routing,
//! authentication or the content must therefore not be in trailers (RFC 9110 section 6.5.1).

use http::{HeaderMap, HeaderName};

use crate::proxy::wire::header_names;

/// Fields that trailers must not contain.
const FORBIDDEN: [&str; 38] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-forwarded-for",
    "x-forwarded-proto",
];

/// Prefix of the fields that sidecars exchange. They belong to the head.
const OWN_PREFIX: &str = "x-outrigger-";

/// Removes the fields that trailers must not contain. Returns `None` if no field remains.
pub(crate) fn without_forbidden(trailers: HeaderMap) -> Option<HeaderMap> {
    let is_forbidden = |name: &&HeaderName| {
        let text = name.as_str();
        FORBIDDEN.binary_search(&text).is_ok()
            || text.starts_with(OWN_PREFIX)
            || !header_names::is_token(name)
    };
    let mut allowed = trailers;
    let forbidden: Vec<_> = allowed.keys().filter(is_forbidden).cloned().collect();
    for name in forbidden {
        allowed.remove(name);
    }
    (!allowed.is_empty()).then_some(allowed)
}

#[cfg(test)]
mod tests;

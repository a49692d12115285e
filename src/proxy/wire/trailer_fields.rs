//! Decides which fields may be in the trailers of a message.
//!
//! A recipient may merge trailers into the head. A field that decides about framing, routing,
//! authentication or the content must therefore not be in trailers (RFC 9110 section 6.5.1).

use crate::{message::headers::Headers, proxy::wire::header_names};

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
const OWN_PREFIX: &[u8] = b"x-outrigger-";

/// Copies the fields that trailers may contain. Returns `None` if there are none.
pub(crate) fn without_forbidden(trailers: &Headers) -> Option<Headers> {
    let is_allowed = |name: &[u8]| {
        let name = name.to_ascii_lowercase();
        let is_listed = FORBIDDEN
            .binary_search_by(|forbidden| forbidden.as_bytes().cmp(&name))
            .is_ok();
        !is_listed && !name.starts_with(OWN_PREFIX) && header_names::is_token(&name)
    };
    let allowed = trailers.filtered(is_allowed);
    (!allowed.is_empty()).then_some(allowed)
}

#[cfg(test)]
mod tests;

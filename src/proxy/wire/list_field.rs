//! Reads header fields whose value is a comma-separated list of tokens.
//!
//! The module does not know which fields are lists.

use http::HeaderName;

use crate::message::headers::{Headers, as_text};

/// Returns whether a header with a comma-separated list contains the token, without regard to
/// case.
pub(crate) fn lists_token(headers: &Headers, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).any(|value| {
        as_text(value)
            .unwrap_or_default()
            .split(',')
            .any(|listed| listed.trim().eq_ignore_ascii_case(token))
    })
}

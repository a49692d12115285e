//! Reads header fields whose value is a comma-separated list of tokens.
//!
//! The module does not know which fields are lists.

use http::{HeaderMap, HeaderName};

/// Returns whether a header with a comma-separated list contains the token, without regard to
/// case.
pub(crate) fn lists_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|listed| listed.trim().eq_ignore_ascii_case(token))
    })
}

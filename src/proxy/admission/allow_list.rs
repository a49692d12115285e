//! The allow list of a route: which clients may use it, by the identity in their certificate.
//!
//! The module does not verify certificates. The TLS handshake of the listener has done so.

use crate::{
    proxy::request::{rejection::Rejection, view::RequestView},
    state::active_policy::RouteState,
    telemetry::reason::Reason,
};

/// Rejects a client whose certificate identity the route does not allow.
///
/// A pattern that ends with `*` allows every identity with the prefix before it. A route
/// without a list allows every client.
pub(crate) fn check_identity(
    route: &RouteState,
    request: &RequestView<'_>,
) -> Result<(), Rejection> {
    let Some(allowed_identities) = &route.spec.allowed_identities else {
        return Ok(());
    };
    let identity = request
        .identity
        .certificate_identity
        .as_deref()
        .unwrap_or_default();
    let matches_identity = |pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => !identity.is_empty() && identity.starts_with(prefix),
        None => identity == pattern,
    };
    if allowed_identities
        .iter()
        .any(|pattern| matches_identity(pattern))
    {
        Ok(())
    } else {
        Err(Rejection::new(Reason::NotAllowed, route.spec.name.clone()))
    }
}

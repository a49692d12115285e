//! Names of the header fields that the proxy reads or writes itself.
//!
//! The module also checks whether a name is valid in HTTP/1. `headers` decides which fields are
//! set and forwarded.

use crate::state::instance::{drain, instance_age};

/// Identifier of a request, unique per request and forwarded unchanged.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// Addresses of the client and of the proxies that forwarded the request, nearest last.
pub(crate) const FORWARDED_FOR: &str = "x-forwarded-for";

/// Scheme that the first client used: `http` or `https`.
pub(crate) const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Host that the first client requested.
pub(crate) const FORWARDED_HOST: &str = "x-forwarded-host";

/// Attempt number of a request at its sender, from 1.
pub(crate) const ATTEMPT: &str = "x-outrigger-attempt";

/// Time that the sender waits for the response head, in milliseconds.
pub(crate) const DEADLINE: &str = "x-outrigger-deadline-ms";

/// Time that a gRPC client waits for the end of its call: up to eight digits and a unit.
pub(crate) const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Reason for a response that a sidecar generated itself.
pub(crate) const REASON: &str = "x-outrigger-reason";

/// Announces that an instance drains, and for how many seconds clients should avoid it.
pub(crate) const DRAINING: &str = drain::DRAINING_HEADER;

/// Announces when an instance became ready, in seconds since 1970, and its warm-up curve.
pub(crate) const STARTED_AT: &str = instance_age::STARTED_AT_HEADER;

/// Announces to a new endpoint that the sender weights its traffic by the warm-up curve. The
/// endpoint then does not reject requests because of its warm-up.
pub(crate) const WEIGHED: &str = "x-outrigger-weighed";

/// W3C trace context of a request.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Key by which the app recognizes a repeated request. A request that carries it may be retried
/// (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Returns whether a name is a token, as HTTP/1 requires it (RFC 9110 section 5.1).
///
/// The `http` crate accepts one more character, and HTTP/2 can carry it.
pub(crate) fn is_token(name: &[u8]) -> bool {
    !name.contains(&b'"')
}

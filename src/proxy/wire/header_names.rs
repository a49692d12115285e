//! The names of the header fields that the proxy reads or writes itself.

use http::HeaderName;

use crate::state::instance::{drain, instance_age};

/// The identifier of a request, unique per request and forwarded unchanged.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The addresses of the proxies before this one, nearest last.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The scheme that the first client used.
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The host that the first client requested.
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The number of the attempt that a request is for its sender, from 1.
pub(crate) const ATTEMPT: HeaderName = HeaderName::from_static("x-outrigger-attempt");

/// The time that the sender waits for the response head, in milliseconds.
pub(crate) const DEADLINE: HeaderName = HeaderName::from_static("x-outrigger-deadline-ms");

/// The time that a gRPC client waits for the end of its call.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Marks a response that a sidecar made, with the reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-outrigger-reason");

/// Tells clients that this instance drains, and for how many seconds they should avoid it.
pub(crate) const DRAINING: HeaderName = HeaderName::from_static(drain::DRAINING_HEADER);

/// Tells clients when this instance became ready, in seconds since 1970, and its warm-up curve.
pub(crate) const STARTED_AT: HeaderName = HeaderName::from_static(instance_age::STARTED_AT_HEADER);

/// Tells an endpoint that the sender follows its warm-up curve.
pub(crate) const WEIGHED: HeaderName = HeaderName::from_static("x-outrigger-weighed");

/// The W3C trace context of a request.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A client's statement that the app recognises a repeated request (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

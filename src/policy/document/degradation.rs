//! What is answered when the backend cannot: something else instead, or what it said before.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ModeSetting,
    units::{ByteSize, PolicyDuration},
};

/// What is answered instead. It has a `response` or a `backendRef`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fallback {
    /// Whether it acts; Shadow counts what would have been answered instead.
    pub mode: ModeSetting,
    /// What makes it act. Default CircuitOpen, Timeout, RetriesExhausted, NoHealthyEndpoint.
    pub triggers: Option<Vec<FallbackTrigger>>,
    /// This is answered. Calls of gRPC get the refusal as it is.
    pub response: Option<FallbackResponse>,
    /// This backend is asked, under its own policy: if the request is idempotent, has not run, or `retry.retryNonIdempotent` allows it, and its body was
    /// kept (`retry.maxBufferedBody`). A route to that same backend passes on what it said.
    pub backend_ref: Option<AuxiliaryBackendRef>,
}

/// What makes a fallback act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FallbackTrigger {
    /// The circuit breaker refuses.
    CircuitOpen,
    /// No connection or no answer in time.
    Timeout,
    /// The last attempt failed, and is not repeated: no connection, cut off, or answered with one of `retry.codes` (without any: 502, 503, 504) or
    /// `retry.grpcCodes` (without any: unavailable).
    RetriesExhausted,
    /// No endpoint may be picked.
    NoHealthyEndpoint,
    /// A limit on what is in flight, admission control or the protection of the instance refuses.
    Overload,
}

/// An answer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackResponse {
    /// The status, 200 to 599. Default 503.
    pub status_code: Option<u16>,
    /// Its media type. Default `text/plain`.
    pub content_type: Option<String>,
    /// The body, at most 64Ki. Default empty.
    #[serde(default)]
    pub body: String,
}

/// A backend that is asked beside those of the route.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuxiliaryBackendRef {
    /// The backend.
    pub name: String,
}

/// Keeps good answers to GET, and gives them again when the backend fails (RFC 5861 `stale-if-error`, RFC 9111). Kept is what a shared cache may
/// keep: a 200 with a length of at most `maxEntryBytes`, without `private`, `no-store`, `no-cache` and `must-revalidate`, of requests without
/// `authorization`, `cookie` and `x-api-key` unless it is said to be public; told apart by host, target, `x-forwarded-host` and `-proto`, and what `vary`
/// names: an app that answers by other fields has to name them there. Given instead of 500, 502, 503, 504 and of refusals, with `age` and `cache-status`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StaleIfError {
    /// Whether it acts; Shadow keeps answers and counts when one would have been given.
    pub mode: ModeSetting,
    /// The longest time since an answer came; `stale-if-error` of the answer shortens it. Default 5m.
    pub max_age: Option<PolicyDuration>,
    /// The longest body that is kept. Default 64Ki.
    pub max_entry_bytes: Option<ByteSize>,
    /// All that is kept of a backend, with heads; what was used longest ago makes room. Default 32Mi.
    pub max_bytes: Option<ByteSize>,
}

//! Responses that replace a failure of the backend: a fallback, or a cached earlier response.
//!
//! This module does not know which failure occurred.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::mode::ModeSetting,
    units::{ByteSize, PolicyDuration},
};

/// Response that replaces a failure. Exactly one of `response` and `backendRef` is set.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fallback {
    /// Whether the fallback replaces failures. Shadow only counts the failures that would be
    /// replaced. Default Enforce.
    pub mode: ModeSetting,
    /// Failures that the fallback replaces. Default CircuitOpen, Timeout, RetriesExhausted,
    /// NoHealthyEndpoint.
    pub triggers: Option<Vec<FallbackTrigger>>,
    /// Fixed response that the client receives. A gRPC call receives the original failure
    /// instead.
    pub response: Option<FallbackResponse>,
    /// Backend that receives the request instead, under its own policy. The request must not
    /// have run, or be idempotent, or `retry.retryNonIdempotent` must allow a repetition. Its
    /// body must still be buffered (`retry.maxBufferedBody`). If the failed request was sent to
    /// this same backend, its failure is returned.
    pub backend_ref: Option<AuxiliaryBackendRef>,
}

/// Failure that a fallback can replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FallbackTrigger {
    /// The circuit breaker rejects the request.
    CircuitOpen,
    /// The connection or the response exceeds a timeout.
    Timeout,
    /// The last attempt fails and is not retried. The connection fails or is reset, or the
    /// response has a status of `retry.codes` or `retry.grpcCodes`. If those lists are empty,
    /// 502, 503, 504 and gRPC `unavailable` count.
    RetriesExhausted,
    /// No endpoint of the backend is available.
    NoHealthyEndpoint,
    /// `connectionLimits`, `admissionControl` or `protection` rejects the request.
    Overload,
}

/// Writes the name that policies use.
impl fmt::Display for FallbackTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitOpen => "CircuitOpen",
            Self::Timeout => "Timeout",
            Self::RetriesExhausted => "RetriesExhausted",
            Self::NoHealthyEndpoint => "NoHealthyEndpoint",
            Self::Overload => "Overload",
        })
    }
}

/// Fixed response of a fallback.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackResponse {
    /// HTTP status, 200 to 599. Default 503.
    pub status_code: Option<u16>,
    /// Media type of the body. Default `text/plain`.
    pub content_type: Option<String>,
    /// Body of the response, at most 64Ki. It must be empty with status 204 or 304. Default
    /// empty.
    #[serde(default)]
    pub body: String,
}

/// Reference to a backend that receives requests in addition to the backends of a route.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuxiliaryBackendRef {
    /// Name of the backend.
    pub name: String,
}

/// Caches successful responses to GET, and sends them again while the backend fails (RFC 5861
/// `stale-if-error`, RFC 9111).
///
/// A response is cached under these conditions:
///
/// - Its status is 200, and its body has at most `maxEntryBytes`.
/// - It has no `set-cookie`, and its `cache-control` has no `private`, `no-store`, `no-cache`,
///   `must-revalidate` or `proxy-revalidate`.
/// - The request has no `range`, and no `no-store` in its `cache-control`.
/// - The request has no `authorization`, `proxy-authorization`, `cookie` or `x-api-key`, or the
///   response is marked as `public` or with `s-maxage`.
///
/// Cached responses are distinguished by route, host, target, `x-forwarded-host`,
/// `x-forwarded-proto`, and the headers that `vary` names. If the app varies its response by
/// other headers, it must list them in `vary`.
///
/// A GET or HEAD request receives the cached response instead of 500, 502, 503 or 504. The same
/// applies if there is no response, for a reason that `fallback.triggers` can name. A request
/// with credentials receives only public responses. A request with `no-cache` or `no-store` in
/// its `cache-control` receives none. The response carries `age` and `cache-status`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StaleIfError {
    /// Whether cached responses are sent. Shadow caches responses, and counts the failures that
    /// a cached response would replace. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum time since the response was received, above 0s. `stale-if-error` in the response
    /// can shorten it. Default 5m.
    pub max_age: Option<PolicyDuration>,
    /// Maximum size of a cached body, at most `maxBytes`. Default 64Ki.
    pub max_entry_bytes: Option<ByteSize>,
    /// Maximum size of all cached responses of a backend, including headers. The least recently
    /// used entries are evicted first. Default 32Mi.
    pub max_bytes: Option<ByteSize>,
}

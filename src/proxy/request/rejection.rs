//! Rejections: responses that the sidecar generates itself, and why.
//!
//! A rejection is a value that the stages of a request return as an error. The functions at the
//! end are the only place that maps a reason to an HTTP status, a gRPC status, a proxy error
//! type and a text. `docs/reasons.md` explains each reason. The module does not write the
//! response.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::{
    policy::snapshot::FaultAbortStatus,
    proxy::{request::grpc, upstream::stream::WriteError},
    telemetry::reason::Reason,
};

/// Name of this proxy in the header fields `proxy-status` and `via`.
pub(crate) const PSEUDONYM: &str = "outrigger";

/// Wait in `retry-after` for a rejection that no policy gives a wait.
pub(crate) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Response that replaces the one that the reason implies.
#[derive(Debug)]
pub(crate) enum ResponseOverride {
    /// A redirect that a route defines.
    Redirect { status: u16, location: String },
    /// An error that fault injection generates.
    Fault(FaultAbortStatus),
    /// The fixed response of a fallback.
    Fallback {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    /// A cached response that is sent because the backend fails (RFC 5861).
    Stale {
        headers: HeaderMap,
        body: Bytes,
        age: Duration,
        /// Status of the failed response; `None` if the backend sent none.
        upstream_status: Option<u16>,
    },
}

/// Reason and response for a request that is not forwarded, or whose response is replaced.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    /// Breaker, rule, limit or endpoint that rejects; empty if there is none.
    pub(crate) rejected_by: Arc<str>,
    /// Wait that the client is advised in `retry-after`; `None` if it is unknown.
    pub(crate) retry_after: Option<Duration>,
    /// Response that replaces the one that the reason implies.
    pub(crate) response_override: Option<Box<ResponseOverride>>,
    /// Whether the client's connection cannot be reused.
    pub(crate) is_fatal: bool,
}

impl Rejection {
    /// Creates a rejection that no named policy or endpoint caused.
    pub(crate) fn from_reason(reason: Reason) -> Self {
        Self::new(reason, Arc::default())
    }

    /// Creates a rejection by a named policy or endpoint.
    pub(crate) fn new(reason: Reason, rejected_by: Arc<str>) -> Self {
        Self {
            reason,
            rejected_by,
            retry_after: None,
            response_override: None,
            is_fatal: false,
        }
    }

    /// Creates a rejection after which the client's connection cannot be reused: it is closed,
    /// or its input cannot be parsed.
    pub(crate) fn fatal(reason: Reason) -> Self {
        Self {
            is_fatal: true,
            ..Self::from_reason(reason)
        }
    }

    /// Sets the wait that the client is advised.
    pub(crate) fn with_retry_after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }

    /// Replaces the response that the reason implies.
    pub(crate) fn with_override(self, response: ResponseOverride) -> Self {
        Self {
            response_override: Some(Box::new(response)),
            ..self
        }
    }

    /// Returns the HTTP status of the response.
    pub(crate) fn status(&self) -> u16 {
        match self.response_override.as_deref() {
            Some(
                ResponseOverride::Redirect { status, .. }
                | ResponseOverride::Fallback { status, .. }
                | ResponseOverride::Fault(FaultAbortStatus::Http(status)),
            ) => *status,
            Some(
                ResponseOverride::Fault(FaultAbortStatus::Grpc(_)) | ResponseOverride::Stale { .. },
            ) => 200,
            None => http_status(self.reason),
        }
    }

    /// Returns whether the response is a gRPC status: to a gRPC call, or as an injected gRPC
    /// error.
    pub(crate) fn is_grpc(&self, is_grpc_call: bool) -> bool {
        is_grpc_call
            || matches!(
                self.response_override.as_deref(),
                Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(_)))
            )
    }

    /// Returns the gRPC status of the response.
    pub(crate) fn grpc_status(&self) -> u8 {
        match self.response_override.as_deref() {
            Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => *status,
            Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
                grpc::status_from_http(*status)
            }
            _ => grpc_status(self.reason),
        }
    }

    /// Returns `TOKEN`, or `TOKEN:NAME` if a named policy or endpoint rejects.
    pub(crate) fn qualified_token(&self) -> String {
        qualified_token(self.reason, &self.rejected_by)
    }
}

impl From<WriteError> for Rejection {
    fn from(error: WriteError) -> Self {
        Self::from_reason(match error {
            WriteError::InvalidTarget => Reason::BadRequest,
            WriteError::Internal => Reason::InternalError,
        })
    }
}

/// Returns `TOKEN`, or `TOKEN:NAME` if `rejected_by` is not empty.
pub(crate) fn qualified_token(reason: Reason, rejected_by: &str) -> String {
    if rejected_by.is_empty() {
        reason.token().to_owned()
    } else {
        format!("{}:{rejected_by}", reason.token())
    }
}

/// Rounds a wait up to whole seconds, at least one, so that no client retries too early.
pub(crate) fn round_up_to_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Returns the HTTP status of a reason.
///
/// 499 is the status that nginx logs for a client that closed its connection. No response with
/// it is written, because the client is gone.
fn http_status(reason: Reason) -> u16 {
    match reason {
        Reason::Stale => 200,
        Reason::Redirect => 302,
        Reason::BadRequest => 400,
        Reason::NotAllowed => 403,
        Reason::NoRoute => 404,
        Reason::MethodNotSupported => 405,
        Reason::StreamIdleTimeout | Reason::HeaderTimeout => 408,
        Reason::BodyTooLarge => 413,
        Reason::RateLimited => 429,
        Reason::HeaderTooLarge => 431,
        Reason::ClientClosed => 499,
        Reason::InternalError => 500,
        Reason::ConnectFailed
        | Reason::TlsFailed
        | Reason::UpstreamReset
        | Reason::UpstreamProtocolError => 502,
        Reason::RetriesExhausted
        | Reason::FaultInjected
        | Reason::Shed
        | Reason::Draining
        | Reason::WarmingUp
        | Reason::BreakerOpen
        | Reason::RateLimitUnavailable
        | Reason::AdmissionControl
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit
        | Reason::NoHealthyEndpoint => 503,
        Reason::ConnectTimeout | Reason::UpstreamTimeout | Reason::RequestTimeout => 504,
        Reason::LoopDetected => 508,
    }
}

/// Returns the proxy error type of a reason (RFC 9209 section 2.3); `None` for a redirect and a
/// stale response, which are no errors.
pub(crate) fn proxy_error(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::Redirect | Reason::Stale => return None,
        Reason::NoRoute => "destination_not_found",
        Reason::RetriesExhausted => "http_response_incomplete",
        Reason::FaultInjected | Reason::NotAllowed | Reason::RateLimited => "http_request_denied",
        Reason::Shed
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit => "connection_limit_reached",
        Reason::Draining
        | Reason::WarmingUp
        | Reason::BreakerOpen
        | Reason::RateLimitUnavailable
        | Reason::AdmissionControl
        | Reason::NoHealthyEndpoint => "destination_unavailable",
        Reason::ConnectFailed => "connection_refused",
        Reason::TlsFailed => "tls_protocol_error",
        Reason::ConnectTimeout => "connection_timeout",
        Reason::UpstreamReset => "connection_terminated",
        Reason::UpstreamTimeout | Reason::RequestTimeout => "http_response_timeout",
        Reason::UpstreamProtocolError => "http_protocol_error",
        Reason::StreamIdleTimeout
        | Reason::BadRequest
        | Reason::MethodNotSupported
        | Reason::HeaderTimeout
        | Reason::HeaderTooLarge
        | Reason::BodyTooLarge
        | Reason::ClientClosed => "http_request_error",
        Reason::LoopDetected => "proxy_loop_detected",
        Reason::InternalError => "proxy_internal_error",
    })
}

/// Returns the reason in words, for the problem body and the gRPC message.
pub(crate) fn reason_title(reason: Reason) -> &'static str {
    match reason {
        Reason::NoRoute => "no route matches this request",
        Reason::Redirect => "the resource has another location",
        Reason::Stale => "a cached response, because the backend fails",
        Reason::RetriesExhausted => "the backend fails",
        Reason::FaultInjected => "an injected fault",
        Reason::Shed => "the instance is short of resources",
        Reason::Draining => "the instance drains; send the request to another one",
        Reason::WarmingUp => "the instance warms up; send the request to another one",
        Reason::NotAllowed => "this client may not use the route",
        Reason::BreakerOpen => "the circuit breaker is open",
        Reason::RateLimited => "too many requests",
        Reason::RateLimitUnavailable => "the shared rate limit cannot be reached",
        Reason::AdmissionControl => "too many requests to the backend fail",
        Reason::ConcurrencyLimit => "too many concurrent requests",
        Reason::QueueTimeout => "the request waited too long for a permit",
        Reason::ConnectionLimit => "too many connections to the backend",
        Reason::NoHealthyEndpoint => "no endpoint is healthy",
        Reason::ConnectFailed => "the connection to the backend failed",
        Reason::TlsFailed => "the TLS handshake with the backend failed",
        Reason::ConnectTimeout => "the connection to the backend timed out",
        Reason::UpstreamReset => "the backend closed the connection",
        Reason::UpstreamTimeout => "the backend did not respond in time",
        Reason::UpstreamProtocolError => "the response of the backend is malformed",
        Reason::RequestTimeout => "the request took too long",
        Reason::StreamIdleTimeout => "the request body did not arrive in time",
        Reason::BadRequest => "the request is malformed",
        Reason::MethodNotSupported => "the method is not proxied",
        Reason::HeaderTimeout => "the request head did not arrive in time",
        Reason::HeaderTooLarge => "the request head is too large",
        Reason::BodyTooLarge => "the request body is too large",
        Reason::ClientClosed => "the client closed the connection",
        Reason::LoopDetected => "the request has passed this proxy before",
        Reason::InternalError => "an internal error of the proxy",
    }
}

/// Returns the gRPC status of a reason.
fn grpc_status(reason: Reason) -> u8 {
    match reason {
        Reason::ClientClosed => grpc::CANCELLED,
        Reason::RequestTimeout | Reason::UpstreamTimeout | Reason::StreamIdleTimeout => {
            grpc::DEADLINE_EXCEEDED
        }
        Reason::NotAllowed => grpc::PERMISSION_DENIED,
        Reason::RateLimited => grpc::RESOURCE_EXHAUSTED,
        Reason::NoRoute | Reason::Redirect | Reason::MethodNotSupported => grpc::UNIMPLEMENTED,
        Reason::UpstreamProtocolError
        | Reason::BadRequest
        | Reason::HeaderTimeout
        | Reason::HeaderTooLarge
        | Reason::BodyTooLarge
        | Reason::LoopDetected
        | Reason::Stale
        | Reason::InternalError => grpc::INTERNAL,
        Reason::BreakerOpen
        | Reason::RetriesExhausted
        | Reason::FaultInjected
        | Reason::Shed
        | Reason::Draining
        | Reason::WarmingUp
        | Reason::RateLimitUnavailable
        | Reason::AdmissionControl
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit
        | Reason::NoHealthyEndpoint
        | Reason::ConnectFailed
        | Reason::TlsFailed
        | Reason::ConnectTimeout
        | Reason::UpstreamReset => grpc::UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests;

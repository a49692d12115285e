//! Why the sidecar responds itself: the rejection as a value, and what each reason means in HTTP, in gRPC and in words.
//!
//! The functions at the end are the only place that maps a reason. `docs/reasons.md` explains each one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::{
    policy::snapshot::FaultAbortStatus,
    proxy::{request::grpc, upstream::stream::WriteError},
    telemetry::reason::Reason,
};

/// The name of this proxy in `proxy-status` and `via`.
pub(crate) const PSEUDONYM: &str = "outrigger";

/// The wait that a client is advised where no policy states one.
pub(crate) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A response that differs from the one that the reason implies.
#[derive(Debug)]
pub(crate) enum ResponseOverride {
    /// A redirect of a route.
    Redirect { status: u16, location: String },
    /// An injected error.
    Fault(FaultAbortStatus),
    /// The fixed response of a fallback.
    Fallback {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    /// A cached response, given because the backend fails (RFC 5861).
    Stale {
        headers: HeaderMap,
        body: Bytes,
        age: Duration,
        /// The status of the failed response, if the backend sent one.
        upstream_status: Option<u16>,
    },
}

/// A request that the sidecar does not forward, or whose response it replaces.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    /// The breaker, rule, limit or endpoint that rejects; empty if there is none.
    pub(crate) rejected_by: Arc<str>,
    /// The wait that the client is advised, if it is known.
    pub(crate) retry_after: Option<Duration>,
    /// The response, where it is not the one that the reason implies.
    pub(crate) response_override: Option<Box<ResponseOverride>>,
    /// Whether the client's connection cannot be used again.
    pub(crate) is_fatal: bool,
}

impl Rejection {
    /// A rejection that no named policy or endpoint caused.
    pub(crate) fn from_reason(reason: Reason) -> Self {
        Self::new(reason, Arc::default())
    }

    /// A rejection by a named policy or endpoint.
    pub(crate) fn new(reason: Reason, rejected_by: Arc<str>) -> Self {
        Self {
            reason,
            rejected_by,
            retry_after: None,
            response_override: None,
            is_fatal: false,
        }
    }

    /// A rejection after which the client's connection cannot be used: it closed, or sent what cannot be parsed.
    pub(crate) fn fatal(reason: Reason) -> Self {
        Self {
            is_fatal: true,
            ..Self::from_reason(reason)
        }
    }

    /// Advises the client to wait.
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

    /// Whether the response to a client with this protocol is a gRPC status.
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

    /// Returns `TOKEN`, or `TOKEN:NAME` where a name is known.
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

/// Returns `TOKEN`, or `TOKEN:NAME` where a name is known.
pub(crate) fn qualified_token(reason: Reason, rejected_by: &str) -> String {
    if rejected_by.is_empty() {
        reason.token().to_owned()
    } else {
        format!("{}:{rejected_by}", reason.token())
    }
}

/// Rounds a wait up to whole seconds, at least one, so that no client returns too early.
pub(crate) fn round_up_to_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// The HTTP status of a reason. 499 is nginx's number for a client that closed; it appears in the log only.
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

/// The proxy error type of a reason (RFC 9209 section 2.3); `None` for what is no error.
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

/// The reason in words, as the problem body and the gRPC message show it.
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

/// The gRPC status of a reason.
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

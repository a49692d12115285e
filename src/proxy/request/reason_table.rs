//! The properties of each reason: statuses, texts, and the fallback that it triggers.
//!
//! This table is the only place that maps a reason to a status or a text. `docs/reasons.md`
//! explains each reason.

use crate::{policy::document::FallbackTrigger, proxy::request::grpc, telemetry::reason::Reason};

/// What a reason means for the response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReasonProperties {
    /// HTTP status of the response. 499 is the status that nginx logs for a client that closed
    /// its connection. No response with it is written, because the client is gone.
    pub(crate) status: u16,
    /// gRPC status of the response to a gRPC call.
    pub(crate) grpc_status: u8,
    /// Proxy error type (RFC 9209 section 2.3); `None` if the response is no error.
    pub(crate) proxy_error: Option<&'static str>,
    /// Reason in words, for the problem body and the gRPC message.
    pub(crate) title: &'static str,
    /// Failure that a fallback may replace. `None` if the response must not be replaced; for an
    /// injected fault, its status decides.
    pub(crate) degradable: Option<Degradable>,
}

/// Failure that a fallback or a cached response may replace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Degradable {
    /// Trigger of the fallback.
    pub(crate) trigger: FallbackTrigger,
    /// Whether the backend may have processed the request.
    pub(crate) may_have_run: bool,
}

/// Returns the properties of a reason.
#[expect(
    clippy::too_many_lines,
    reason = "the table has one row for each reason"
)]
pub(crate) fn properties(reason: Reason) -> ReasonProperties {
    match reason {
        Reason::NoRoute => {
            ReasonProperties::new(404, grpc::UNIMPLEMENTED, "no route matches this request")
                .with_proxy_error("destination_not_found")
        }
        Reason::Redirect => ReasonProperties::new(
            302,
            grpc::UNIMPLEMENTED,
            "the resource has another location",
        ),
        Reason::NotAllowed => ReasonProperties::new(
            403,
            grpc::PERMISSION_DENIED,
            "this client may not use the route",
        )
        .with_proxy_error("http_request_denied"),
        Reason::BreakerOpen => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "the circuit breaker is open")
                .with_proxy_error("destination_unavailable")
                .degradable(FallbackTrigger::CircuitOpen)
        }
        Reason::RateLimited => {
            ReasonProperties::new(429, grpc::RESOURCE_EXHAUSTED, "too many requests")
                .with_proxy_error("http_request_denied")
        }
        Reason::RateLimitUnavailable => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "the shared rate limit cannot be reached",
        )
        .with_proxy_error("destination_unavailable"),
        Reason::AdmissionControl => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "too many requests to the backend fail",
        )
        .with_proxy_error("destination_unavailable")
        .degradable(FallbackTrigger::Overload),
        Reason::ConcurrencyLimit => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "too many concurrent requests")
                .with_proxy_error("connection_limit_reached")
                .degradable(FallbackTrigger::Overload)
        }
        Reason::QueueTimeout => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "the request waited too long for a permit",
        )
        .with_proxy_error("connection_limit_reached")
        .degradable(FallbackTrigger::Overload),
        Reason::ConnectionLimit => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "too many connections to the backend",
        )
        .with_proxy_error("connection_limit_reached")
        .degradable(FallbackTrigger::Overload),
        Reason::Shed => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "the instance is short of resources")
                .with_proxy_error("connection_limit_reached")
                .degradable(FallbackTrigger::Overload)
        }
        Reason::Memory => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "the sidecar is short of memory")
                .with_proxy_error("connection_limit_reached")
                .degradable(FallbackTrigger::Overload)
        }
        Reason::Draining => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "the instance drains; send the request to another one",
        )
        .with_proxy_error("destination_unavailable"),
        Reason::WarmingUp => ReasonProperties::new(
            503,
            grpc::UNAVAILABLE,
            "the instance warms up; send the request to another one",
        )
        .with_proxy_error("destination_unavailable"),
        Reason::RetriesExhausted => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "the backend fails")
                .with_proxy_error("http_response_incomplete")
        }
        Reason::Stale => ReasonProperties::new(
            200,
            grpc::INTERNAL,
            "a cached response, because the backend fails",
        ),
        Reason::FaultInjected => ReasonProperties::new(503, grpc::UNAVAILABLE, "an injected fault")
            .with_proxy_error("http_request_denied"),
        Reason::NoHealthyEndpoint => {
            ReasonProperties::new(503, grpc::UNAVAILABLE, "no endpoint is healthy")
                .with_proxy_error("destination_unavailable")
                .degradable(FallbackTrigger::NoHealthyEndpoint)
        }
        Reason::ConnectFailed => ReasonProperties::new(
            502,
            grpc::UNAVAILABLE,
            "the connection to the backend failed",
        )
        .with_proxy_error("connection_refused")
        .degradable(FallbackTrigger::RetriesExhausted),
        Reason::TlsFailed => ReasonProperties::new(
            502,
            grpc::UNAVAILABLE,
            "the TLS handshake with the backend failed",
        )
        .with_proxy_error("tls_protocol_error")
        .degradable(FallbackTrigger::RetriesExhausted),
        Reason::ConnectTimeout => ReasonProperties::new(
            504,
            grpc::UNAVAILABLE,
            "the connection to the backend timed out",
        )
        .with_proxy_error("connection_timeout")
        .degradable(FallbackTrigger::Timeout),
        Reason::UpstreamReset => {
            ReasonProperties::new(502, grpc::UNAVAILABLE, "the backend closed the connection")
                .with_proxy_error("connection_terminated")
                .degradable_after_run(FallbackTrigger::RetriesExhausted)
        }
        Reason::UpstreamTimeout => ReasonProperties::new(
            504,
            grpc::DEADLINE_EXCEEDED,
            "the backend did not respond in time",
        )
        .with_proxy_error("http_response_timeout")
        .degradable_after_run(FallbackTrigger::Timeout),
        Reason::UpstreamProtocolError => ReasonProperties::new(
            502,
            grpc::INTERNAL,
            "the response of the backend is malformed",
        )
        .with_proxy_error("http_protocol_error")
        .degradable_after_run(FallbackTrigger::RetriesExhausted),
        Reason::RequestTimeout => {
            ReasonProperties::new(504, grpc::DEADLINE_EXCEEDED, "the request took too long")
                .with_proxy_error("http_response_timeout")
                .degradable_after_run(FallbackTrigger::Timeout)
        }
        Reason::StreamIdleTimeout => ReasonProperties::new(
            408,
            grpc::DEADLINE_EXCEEDED,
            "the request body did not arrive in time",
        )
        .with_proxy_error("http_request_error"),
        Reason::BadRequest => {
            ReasonProperties::new(400, grpc::INTERNAL, "the request is malformed")
                .with_proxy_error("http_request_error")
        }
        Reason::MethodNotSupported => {
            ReasonProperties::new(405, grpc::UNIMPLEMENTED, "the method is not proxied")
                .with_proxy_error("http_request_error")
        }
        Reason::HeaderTimeout => ReasonProperties::new(
            408,
            grpc::INTERNAL,
            "the request head did not arrive in time",
        )
        .with_proxy_error("http_request_error"),
        Reason::HeaderTooLarge => {
            ReasonProperties::new(431, grpc::INTERNAL, "the request head is too large")
                .with_proxy_error("http_request_error")
        }
        Reason::BodyTooLarge => {
            ReasonProperties::new(413, grpc::INTERNAL, "the request body is too large")
                .with_proxy_error("http_request_error")
        }
        Reason::ClientClosed => {
            ReasonProperties::new(499, grpc::CANCELLED, "the client closed the connection")
                .with_proxy_error("http_request_error")
        }
        Reason::LoopDetected => ReasonProperties::new(
            508,
            grpc::INTERNAL,
            "the request has passed too many sidecars",
        )
        .with_proxy_error("proxy_loop_detected"),
        Reason::InternalError => {
            ReasonProperties::new(500, grpc::INTERNAL, "an internal error of the proxy")
                .with_proxy_error("proxy_internal_error")
        }
    }
}

impl ReasonProperties {
    const fn new(status: u16, grpc_status: u8, title: &'static str) -> Self {
        Self {
            status,
            grpc_status,
            proxy_error: None,
            title,
            degradable: None,
        }
    }

    const fn with_proxy_error(self, proxy_error: &'static str) -> Self {
        Self {
            proxy_error: Some(proxy_error),
            ..self
        }
    }

    /// Marks a failure before the backend could process the request.
    const fn degradable(self, trigger: FallbackTrigger) -> Self {
        Self {
            degradable: Some(Degradable {
                trigger,
                may_have_run: false,
            }),
            ..self
        }
    }

    /// Marks a failure after which it is unknown whether the backend processed the request.
    const fn degradable_after_run(self, trigger: FallbackTrigger) -> Self {
        Self {
            degradable: Some(Degradable {
                trigger,
                may_have_run: true,
            }),
            ..self
        }
    }
}

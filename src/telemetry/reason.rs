//! Defines why the sidecar responded itself, or why a response was incomplete.
//!
//! The reasons are a closed list of tokens. The same token appears in the `x-outrigger-reason`
//! header, the access log and the metric labels. `docs/reasons.md` explains each token, and a test
//! compares it with this list. The module does not know the status or body of a rejection.

use crate::telemetry::label::{Label as _, counted_labels};

counted_labels! {
    /// Reason of a response that the sidecar created, or of an incomplete response.
    Reason {
        /// No route matches the request.
        NoRoute = "no_route",
        /// The route redirects the request.
        Redirect = "redirect",
        /// The client's certificate is not allowed on the route.
        NotAllowed = "not_allowed",
        /// The circuit breaker rejects the request.
        BreakerOpen = "breaker_open",
        /// A rate limit rejects the request.
        RateLimited = "rate_limited",
        /// The engine of the global rate limits does not respond, and the policy fails closed.
        RateLimitUnavailable = "rate_limit_unavailable",
        /// The success rate of the backend is too low, and the request is in the rejected share.
        AdmissionControl = "admission_control",
        /// All permits of a concurrency limit are in use, and its queue is full.
        ConcurrencyLimit = "concurrency_limit",
        /// No permit of a concurrency limit became free in time.
        QueueTimeout = "queue_timeout",
        /// The backend or endpoint has reached its connection limit.
        ConnectionLimit = "connection_limit",
        /// The instance or a limit is overloaded, and the priority of the request is too low.
        Shed = "shed",
        /// The memory budget of the sidecar is nearly used up.
        Memory = "memory",
        /// The instance drains. It did not process the request, or it ended an open stream.
        Draining = "draining",
        /// The instance is new and leaves the request to other instances.
        WarmingUp = "warming_up",
        /// The last attempt failed, and the fallback responds.
        RetriesExhausted = "retries_exhausted",
        /// A cached response replaces a failure.
        Stale = "stale",
        /// Fault injection aborts the request.
        FaultInjected = "fault_injected",
        /// No endpoint of the backend is available.
        NoHealthyEndpoint = "no_healthy_endpoint",
        /// No connection to the endpoint could be established.
        ConnectFailed = "connect_failed",
        /// The TLS handshake with the endpoint failed.
        TlsFailed = "tls_failed",
        /// No connection to the endpoint was established in time.
        ConnectTimeout = "connect_timeout",
        /// The connection ended before the response was complete.
        UpstreamReset = "upstream_reset",
        /// An attempt received no response within its timeout.
        UpstreamTimeout = "upstream_timeout",
        /// The response is not HTTP, or does not fit the request.
        UpstreamProtocolError = "upstream_protocol_error",
        /// The request exceeded its timeout, including all attempts and waits.
        RequestTimeout = "request_timeout",
        /// The body or tunnel was idle for too long.
        StreamIdleTimeout = "stream_idle_timeout",
        /// The request is not HTTP, or is ambiguous.
        BadRequest = "bad_request",
        /// The sidecar does not proxy the method.
        MethodNotSupported = "method_not_supported",
        /// The request head did not arrive in time.
        HeaderTimeout = "header_timeout",
        /// The request head is too large.
        HeaderTooLarge = "header_too_large",
        /// The request body is too large.
        BodyTooLarge = "body_too_large",
        /// The client disconnected before it had the complete response.
        ClientClosed = "client_closed",
        /// The request was routed back to the sidecar and has passed too many sidecars.
        LoopDetected = "loop_detected",
        /// The sidecar has an internal error.
        InternalError = "internal_error",
    }
}

impl Reason {
    /// Returns the token of the reason, such as `breaker_open`.
    #[must_use]
    pub fn token(self) -> &'static str {
        self.label()
    }
}

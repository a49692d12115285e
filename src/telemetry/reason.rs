//! Why the sidecar answered by itself, or why an answer of the app's did not get through: a closed list of tokens.
//!
//! The same token stands in the `x-outrigger-reason` header, the access log and the metric labels; `docs/reasons.md` explains
//! each one, and a test compares it with this list.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $token:literal,)+) => {
        /// Why.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The token.
            #[must_use]
            pub fn token(self) -> &'static str {
                match self {
                    $(Self::$name => $token,)+
                }
            }
        }
    };
}

reasons! {
    /// No route takes the request.
    NoRoute = "no_route",
    /// A route answers with a redirect.
    Redirect = "redirect",
    /// The client's certificate is not one of those that may use the route.
    NotAllowed = "not_allowed",
    /// The circuit breaker refuses.
    BreakerOpen = "breaker_open",
    /// A rate limit refuses.
    RateLimited = "rate_limited",
    /// Nobody can be asked about a limit of all instances, and the policy fails closed.
    RateLimitUnavailable = "rate_limit_unavailable",
    /// The backend answers too few requests well, and a share of them is refused.
    AdmissionControl = "admission_control",
    /// All places are taken, and the queue is full.
    ConcurrencyLimit = "concurrency_limit",
    /// No place came free in time.
    QueueTimeout = "queue_timeout",
    /// The backend has as many connections as it may.
    ConnectionLimit = "connection_limit",
    /// The instance is short of resources, and this request is not among those that matter most.
    Shed = "shed",
    /// The instance is leaving, and did not look at the request.
    Draining = "draining",
    /// The instance is new, and leaves this request to the others.
    WarmingUp = "warming_up",
    /// The last attempt failed, and a fallback is answered.
    RetriesExhausted = "retries_exhausted",
    /// An earlier answer is given instead of a failure.
    Stale = "stale",
    /// A fault on purpose.
    FaultInjected = "fault_injected",
    /// No endpoint may be picked.
    NoHealthyEndpoint = "no_healthy_endpoint",
    /// No connection could be made.
    ConnectFailed = "connect_failed",
    /// The two sides did not agree on TLS.
    TlsFailed = "tls_failed",
    /// No connection was made in time.
    ConnectTimeout = "connect_timeout",
    /// The connection ended before the answer did.
    UpstreamReset = "upstream_reset",
    /// No answer within one attempt's time.
    UpstreamTimeout = "upstream_timeout",
    /// The answer is not HTTP, or not one that fits the request.
    UpstreamProtocolError = "upstream_protocol_error",
    /// The whole request took too long.
    RequestTimeout = "request_timeout",
    /// The body or tunnel was silent for too long.
    StreamIdleTimeout = "stream_idle_timeout",
    /// The request is not HTTP, or ambiguous.
    BadRequest = "bad_request",
    /// The method is not proxied.
    MethodNotSupported = "method_not_supported",
    /// The head of the request did not come in time.
    HeaderTimeout = "header_timeout",
    /// The head of the request is too long.
    HeaderTooLarge = "header_too_large",
    /// The body of the request is too long.
    BodyTooLarge = "body_too_large",
    /// The client left before it had its answer.
    ClientClosed = "client_closed",
    /// A request that this sidecar sent came back to it.
    LoopDetected = "loop_detected",
    /// A fault of the sidecar's own.
    InternalError = "internal_error",
}

impl Reason {
    /// The place in [`Reason::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests;

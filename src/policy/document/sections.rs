//! The protective sections that may occur in `defaults`, in a named policy, or in a route.
//!
//! `compile` decides which of these locations applies. Sections with a larger format have their
//! own modules.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{
        admission::AdmissionControlSection,
        degradation::{Fallback, StaleIfError},
        grpc_code::GrpcCode,
        hedging::Hedging,
        mode::ModeSetting,
        rate_limit::RateLimitSection,
    },
    units::{ByteSize, Percent, PolicyDuration, StatusRange},
};

/// Protective sections. An empty section `{}` applies all of its defaults. A missing section is
/// inherited.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sections {
    /// Timeouts of requests, attempts and connections.
    pub timeouts: Option<Timeouts>,
    /// Failures and statuses that are retried.
    pub retry: Option<Retry>,
    /// Budget that limits the retries to a backend.
    pub retry_constraint: Option<RetryConstraint>,
    /// Rejection of all requests to a backend that fails or is slow.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Limits on requests in flight, queued requests and connections.
    pub connection_limits: Option<ConnectionLimits>,
    /// Rejection of a share of the requests while a backend fails.
    pub admission_control: Option<AdmissionControlSection>,
    /// Limits on the rate of requests.
    pub rate_limit: Option<RateLimitSection>,
    /// Further attempts while a response is late.
    pub hedging: Option<Hedging>,
    /// Response that replaces a failure.
    pub fallback: Option<Fallback>,
    /// Cached responses that are sent while the backend fails.
    pub stale_if_error: Option<StaleIfError>,
}

impl Sections {
    /// Returns whether no section is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            timeouts,
            retry,
            retry_constraint,
            circuit_breaker,
            connection_limits,
            admission_control,
            rate_limit,
            hedging,
            fallback,
            stale_if_error,
        } = self;
        let has_no_time_section = timeouts.is_none()
            && retry.is_none()
            && retry_constraint.is_none()
            && hedging.is_none();
        let has_no_load_section = circuit_breaker.is_none()
            && connection_limits.is_none()
            && admission_control.is_none()
            && rate_limit.is_none();
        has_no_time_section && has_no_load_section && fallback.is_none() && stale_if_error.is_none()
    }
}

/// Timeouts of requests, attempts and connections. `0s` disables a timeout.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// Maximum time of the whole request with all attempts, until the response head. It starts
    /// when the client has sent the whole request. Default 15s.
    pub request: Option<PolicyDuration>,
    /// Maximum time of one attempt, until the response head; at most `request`. Default 5s, or
    /// `request` if that is shorter.
    pub backend_request: Option<PolicyDuration>,
    /// Maximum time to establish a connection, including TLS. Default 1s.
    pub connect: Option<PolicyDuration>,
    /// Maximum time without data while a body or a tunnel is relayed, in either direction.
    /// Default 5m.
    pub stream_idle: Option<PolicyDuration>,
}

/// Failures and statuses that are retried.
///
/// Without this section, only requests that the app did not process are retried, at most twice.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Whether requests are retried. Shadow only counts the retries that would be made. Off
    /// also disables retries of requests that the app did not process. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of retries after the first attempt. Retries of requests that the app did
    /// not process do not count. Default 1.
    pub attempts: Option<u32>,
    /// Failures without a response that are retried. Default connect-failure, refused-stream,
    /// reset-before-request.
    pub retry_on: Option<Vec<RetryTrigger>>,
    /// HTTP statuses that are retried. For idempotent requests only, unless
    /// `retryNonIdempotent` is set. Default 502, 503, 504.
    pub codes: Option<Vec<StatusRange>>,
    /// gRPC statuses that are retried, if the response consists of the status alone
    /// (Trailers-Only). Default none. A call that failed immediately looks the same as one that
    /// never ran. Name only statuses that your services send before they start a call. With
    /// `retryNonIdempotent` or an `idempotency-key` header, a call that fails after its head
    /// and before its first message is also retried. The sidecar holds the head back until the
    /// message or the status arrives.
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Base of the wait before a retry. The wait before retry n is random between 0 and
    /// `backoff * 2^(n-1)` (full jitter). Default 25ms.
    pub backoff: Option<PolicyDuration>,
    /// Maximum wait before a retry, at least `backoff`. Default ten times `backoff`.
    pub max_backoff: Option<PolicyDuration>,
    /// Whether requests that are not idempotent are retried although they may have run. GET,
    /// HEAD, OPTIONS, TRACE, PUT, DELETE, and requests with an `idempotency-key` header are
    /// idempotent. Default false.
    pub retry_non_idempotent: Option<bool>,
    /// Whether `retry-after` of a 429 or 503 response, or `grpc-retry-pushback-ms`, replaces
    /// the backoff, up to 5m. Default true.
    pub respect_retry_after: Option<bool>,
    /// Maximum size of a request body that is buffered for a repetition. A larger body is
    /// forwarded, but the request cannot be retried. Default 64Ki.
    pub max_buffered_body: Option<ByteSize>,
}

/// Failure without a response that is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryTrigger {
    /// No connection could be established, including TLS.
    ConnectFailure,
    /// The backend reports that it did not process the request, for example with a refused
    /// HTTP/2 stream.
    RefusedStream,
    /// The connection ended before a byte of the request was written.
    ResetBeforeRequest,
    /// The connection ended after the request was written and before a response. For idempotent
    /// requests only, unless `retryNonIdempotent` is set.
    Reset,
    /// No response arrived within `timeouts.backendRequest`. For idempotent requests only,
    /// unless `retryNonIdempotent` is set.
    Timeout,
}

/// Budget that limits the retries to a backend: a share of its requests, and a minimum rate. A
/// retry is made if either allows it. The defaults also apply without this section.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryConstraint {
    /// Share of the requests that may be retried. Default 20 percent of the requests in 10s.
    pub budget: Option<RetryBudgetSection>,
    /// Retries that are always allowed, for backends with few requests. Default 10 per 1s.
    pub min_retry_rate: Option<RetryRate>,
}

/// Share of the requests in an interval that may be retried.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudgetSection {
    /// Retries in percent of the requests in the interval. Default 20.
    pub percent: Option<Percent>,
    /// Length of the interval, above 0s. Default 10s.
    pub interval: Option<PolicyDuration>,
}

/// Number of retries that are always allowed in an interval.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryRate {
    /// Number of retries per interval. Default 10.
    pub count: Option<u32>,
    /// Length of the interval, above 0s. Default 1s.
    pub interval: Option<PolicyDuration>,
}

/// Rejects all requests to a backend that fails or is slow, until a few probe calls succeed. A
/// rejected client receives 503 with the reason `breaker_open`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Whether an open breaker rejects requests. Shadow only counts the requests that would be
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// What one breaker covers. Default Backend.
    pub scope: Option<BreakerScope>,
    /// Consecutive failures that trip the breaker. 0 disables it. Default 0.
    pub consecutive_failures: Option<u32>,
    /// Window over which the failure rate and the slow-call rate are counted, above 0s. Default
    /// 10s.
    pub sampling_window: Option<PolicyDuration>,
    /// Minimum number of calls in the window before a rate is evaluated, at least 1. Default
    /// 20.
    pub minimum_number_of_calls: Option<u32>,
    /// Share of failed calls, in percent, from which the breaker trips. 0 disables it. Default
    /// 50.
    pub failure_rate_threshold: Option<Percent>,
    /// Time until the response head above which a call is slow. Default 80 % of
    /// `timeouts.backendRequest`, or 1m if that timeout is off.
    pub slow_call_duration_threshold: Option<PolicyDuration>,
    /// Share of slow calls, in percent, from which the breaker trips. 0 disables it. Default
    /// 100.
    pub slow_call_rate_threshold: Option<Percent>,
    /// HTTP statuses that are failures. Default 5xx. A 429 always counts towards the failure
    /// rate, and never towards `consecutiveFailures`.
    pub failure_codes: Option<Vec<StatusRange>>,
    /// Time for which the breaker is open after it trips, with a jitter of 20 %; above 0s.
    /// Default 5s.
    pub wait_duration_in_open_state: Option<PolicyDuration>,
    /// Maximum open time. The open time doubles with each failed half-open round. Default 1m,
    /// or `waitDurationInOpenState` if that is longer.
    pub max_wait_duration_in_open_state: Option<PolicyDuration>,
    /// Number of calls that probe the backend in a half-open round, at least 1. Default 5.
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
    /// Maximum duration of a half-open round, above 0s. After it, the breaker opens again.
    /// Default 30s.
    pub max_wait_duration_in_half_open_state: Option<PolicyDuration>,
    /// Time after closing during which the admitted share of the calls rises. 0s admits all
    /// calls at once. Default 10s.
    pub recovery_ramp: Option<PolicyDuration>,
}

/// What one circuit breaker covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum BreakerScope {
    /// A backend, for all routes that inherit the section from the same location.
    #[default]
    Backend,
    /// A route. If the route has several backends, each of them has its own breaker.
    Route,
    /// One endpoint. While its breaker is open, the endpoint is not selected. Requests are
    /// rejected only if no other endpoint is left.
    Endpoint,
}

/// Writes the name that policies use.
impl fmt::Display for BreakerScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backend => "Backend",
            Self::Route => "Route",
            Self::Endpoint => "Endpoint",
        })
    }
}

/// Limits on requests in flight, queued requests and connections to a backend.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Whether the limits are enforced. Shadow only counts the requests that would be queued or
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of connections to the backend, busy and idle, at least 1. A request that
    /// needs a further connection is rejected with 503. A worker shares its HTTP/2 connections
    /// among requests. To keep all workers busy, allow at least one connection per worker and
    /// endpoint. Default 1024.
    pub max_connections: Option<u32>,
    /// Maximum number of connections to one endpoint, busy and idle, at least 1. While all of
    /// them are busy, the endpoint is not selected. Default `maxConnections`.
    pub max_connections_per_endpoint: Option<u32>,
    /// Maximum number of requests in flight, at least 1. Further requests wait in the queue.
    /// Default 1024.
    pub max_parallel_requests: Option<u32>,
    /// Maximum number of requests in the queue. Further requests are rejected with 503. Default
    /// 256, or 0 with an adaptive limit in Enforce mode, because a wait in the queue adds
    /// latency. A short queue absorbs bursts while an adaptive limit is still low.
    pub max_pending_requests: Option<u32>,
    /// Maximum time that a request waits in the queue. It is then rejected with 503. Default
    /// 1s.
    pub pending_timeout: Option<PolicyDuration>,
    /// Maximum number of requests that retry at the same time. Default a fifth of
    /// `maxParallelRequests`, at least 3.
    pub max_parallel_retries: Option<u32>,
    /// Limit that adapts to the latency of the backend and lowers `maxParallelRequests`.
    /// Default none.
    pub adaptive: Option<AdaptiveConcurrency>,
}

/// Concurrency limit that adapts to the latency of the backend. Requests over it wait or are
/// rejected as with `maxParallelRequests`.
///
/// A request counts towards this limit until its response starts, and towards
/// `maxParallelRequests` until its response ends. The limit starts at `minLimit` (AIMD: at 20)
/// and grows fast while that does not raise the latency.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// Whether the limit is enforced. Shadow only counts the requests that would be rejected.
    /// Default Enforce.
    pub mode: ModeSetting,
    /// Algorithm that adjusts the limit. Default Gradient2.
    pub algorithm: AdaptiveAlgorithm,
    /// Lower bound of the limit in requests, at least 1. Default 4, or `maxParallelRequests` if
    /// that is lower.
    pub min_limit: Option<u32>,
    /// Upper bound of the limit in requests, from `minLimit` to `maxParallelRequests`. Default
    /// `maxParallelRequests`.
    pub max_limit: Option<u32>,
}

/// Algorithm that adjusts a concurrency limit. The algorithms are those of Netflix's
/// concurrency-limits, but an overload does not become the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum AdaptiveAlgorithm {
    /// Lowers the limit while the latency is above 1.5 times the long-term baseline.
    #[default]
    Gradient2,
    /// Adjusts the limit by the queue length that the latency above the minimum latency
    /// implies.
    Vegas,
    /// Raises the limit by one without drops, and lowers it by a tenth on timeouts, 429 and
    /// 503. It ignores latency.
    AIMD,
}

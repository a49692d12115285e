//! The protective sections, wherever they stand: in `defaults`, in a named policy, or in a route.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::{AdmissionControlSection, Fallback, Hedging, RateLimitSection, StaleIfError},
    units::{ByteSize, Percent, PolicyDuration, StatusRange},
};

/// A set of protective sections. `{}` means a section with its defaults, a missing one means inherit.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sections {
    /// How long things may take.
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    pub retry: Option<Retry>,
    /// How many retries a backend is asked to take.
    pub retry_constraint: Option<RetryConstraint>,
    /// When a backend is no longer asked.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How much may be in flight.
    pub connection_limits: Option<ConnectionLimits>,
    /// How many requests are refused while a backend fails.
    pub admission_control: Option<AdmissionControlSection>,
    /// How many requests may come.
    pub rate_limit: Option<RateLimitSection>,
    /// Further requests for an answer that is late.
    pub hedging: Option<Hedging>,
    /// What is answered instead.
    pub fallback: Option<Fallback>,
    /// Answers that are given again when the backend fails.
    pub stale_if_error: Option<StaleIfError>,
}

impl Sections {
    /// Whether none is given.
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

/// Whether a section acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum ModeSetting {
    /// Decides and acts.
    #[default]
    Enforce,
    /// Decides, counts and explains as Enforce would, and lets the request pass.
    Shadow,
    /// Does nothing.
    Off,
}

/// How long things may take; `0s` is off.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// The whole request with all its attempts, until the head of the answer. Default 15s.
    pub request: Option<PolicyDuration>,
    /// One attempt, until the head of the answer. Default 5s.
    pub backend_request: Option<PolicyDuration>,
    /// Making a connection. Default 1s.
    pub connect: Option<PolicyDuration>,
    /// The longest silence while a body or a tunnel flows, in either direction. Default 5m.
    pub stream_idle: Option<PolicyDuration>,
}

/// What is tried again.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Whether it acts.
    pub mode: ModeSetting,
    /// Retries after the first attempt. Default 1.
    pub attempts: Option<u32>,
    /// Failures that are tried again. Default connect-failure, refused-stream, reset-before-request.
    pub retry_on: Option<Vec<RetryTrigger>>,
    /// Statuses that are tried again. Default 502, 503, 504.
    pub codes: Option<Vec<StatusRange>>,
    /// Statuses of gRPC that are tried again, if they came instead of an answer. Default none: a call that failed at once looks the same as
    /// one that never ran, so name only what your services give before they begin. With `retryNonIdempotent` calls are tried again as well
    /// that fail after their head and before their first message; the head is then kept back until one of the two comes.
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// The base of the wait: before retry n it is drawn from 0 to backoff * 2^(n-1) (full jitter). Default 25ms.
    pub backoff: Option<PolicyDuration>,
    /// The longest wait. Default ten times `backoff`.
    pub max_backoff: Option<PolicyDuration>,
    /// Whether methods that are not idempotent may be repeated although they may have run. Default false.
    pub retry_non_idempotent: Option<bool>,
    /// Whether `retry-after` of the answer replaces the backoff. Default true.
    pub respect_retry_after: Option<bool>,
    /// The longest request body that is kept for a repeat. Default 64Ki.
    pub max_buffered_body: Option<ByteSize>,
}

/// A failure that is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryTrigger {
    /// No connection could be made.
    ConnectFailure,
    /// HTTP/2: the stream was refused before it was looked at.
    RefusedStream,
    /// The connection ended before a byte of the request was written.
    ResetBeforeRequest,
    /// The connection ended after the request was written and before an answer. Idempotent methods only.
    Reset,
    /// No answer within `timeouts.backendRequest`. Idempotent methods only.
    Timeout,
}

/// A status of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcCode {
    /// 1.
    Cancelled,
    /// 2.
    Unknown,
    /// 3.
    InvalidArgument,
    /// 4.
    DeadlineExceeded,
    /// 5.
    NotFound,
    /// 6.
    AlreadyExists,
    /// 7.
    PermissionDenied,
    /// 8.
    ResourceExhausted,
    /// 9.
    FailedPrecondition,
    /// 10.
    Aborted,
    /// 11.
    OutOfRange,
    /// 12.
    Unimplemented,
    /// 13.
    Internal,
    /// 14.
    Unavailable,
    /// 15.
    DataLoss,
    /// 16.
    Unauthenticated,
}

impl GrpcCode {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// How many retries a backend is asked to take: a share of its requests, and a floor.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryConstraint {
    /// The share. Default 20 percent of 10s.
    pub budget: Option<RetryBudgetSection>,
    /// The floor. Default 10 in 1s.
    pub min_retry_rate: Option<RetryRate>,
}

/// A share of the requests of an interval.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudgetSection {
    /// The share. Default 20.
    pub percent: Option<Percent>,
    /// The interval. Default 10s.
    pub interval: Option<PolicyDuration>,
}

/// A number of retries in an interval.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryRate {
    /// The number. Default 10.
    pub count: Option<u32>,
    /// The interval. Default 1s.
    pub interval: Option<PolicyDuration>,
}

/// When a backend is no longer asked: a state machine, not a set of limits.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Whether it acts.
    pub mode: ModeSetting,
    /// What one breaker watches. Default Backend.
    pub scope: Option<BreakerScope>,
    /// Failures in a row that trip; 0 is off. Default 0.
    pub consecutive_failures: Option<u32>,
    /// What the rates are counted over. Default 10s.
    pub sampling_window: Option<PolicyDuration>,
    /// No rate is looked at before so many calls. Default 20.
    pub minimum_number_of_calls: Option<u32>,
    /// The share of failed calls that trips; 0 is off. Default 50.
    pub failure_rate_threshold: Option<Percent>,
    /// A call longer than this is slow. Default 80 % of `timeouts.backendRequest`.
    pub slow_call_duration_threshold: Option<PolicyDuration>,
    /// The share of slow calls that trips; 0 is off. Default 100.
    pub slow_call_rate_threshold: Option<Percent>,
    /// Statuses that are failures. Default 5xx. 429 always counts for the rate, and never for the run.
    pub failure_codes: Option<Vec<StatusRange>>,
    /// The first open time, jittered by 20 %. Default 5s.
    pub wait_duration_in_open_state: Option<PolicyDuration>,
    /// The longest open time; it doubles with each half-open round that failed. Default 1m.
    pub max_wait_duration_in_open_state: Option<PolicyDuration>,
    /// Calls that probe in a half-open round. Default 5.
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
    /// The longest half-open round; then it opens again. Default 30s.
    pub max_wait_duration_in_half_open_state: Option<PolicyDuration>,
    /// How long the share of admitted calls rises after closing; 0s admits all at once. Default 10s.
    pub recovery_ramp: Option<PolicyDuration>,
}

/// What one breaker watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum BreakerScope {
    /// A backend, over all routes that inherit the section from the same place.
    #[default]
    Backend,
    /// A route.
    Route,
    /// Each endpoint by itself; an open one is not picked, and nothing is refused while another is left.
    Endpoint,
}

/// How much may be in flight.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Whether it acts.
    pub mode: ModeSetting,
    /// Connections to the backend at once, busy and idle. Connections of HTTP/2 are shared within a worker: it takes at least one for each
    /// worker and endpoint to keep all busy. Default 1024.
    pub max_connections: Option<u32>,
    /// Connections to one endpoint at once, busy and idle; one that has as many is not picked while all of them are busy. Default as
    /// `maxConnections`.
    pub max_connections_per_endpoint: Option<u32>,
    /// Requests in flight at once. Default 1024.
    pub max_parallel_requests: Option<u32>,
    /// Requests waiting for a place. Default 256; with an adaptive limit that acts 0, since waiting here is latency as well. Where bursts come while it is
    /// still low, a few places to wait in cost little.
    pub max_pending_requests: Option<u32>,
    /// How long one may wait. Default 1s.
    pub pending_timeout: Option<PolicyDuration>,
    /// Retries in flight at once. Default the larger of 3 and a fifth of `maxParallelRequests`.
    pub max_parallel_retries: Option<u32>,
    /// Lowers `maxParallelRequests` to what the backend bears, by how long its answers take.
    pub adaptive: Option<AdaptiveConcurrency>,
}

/// A limit that is found out. A call counts against it until its answer begins, and against `maxParallelRequests` until its end. It begins with `minLimit` (AIMD: 20) and grows fast while answers take no longer for it; a request that is
/// over it waits or is refused as over `maxParallelRequests`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// Whether it acts; Shadow counts the requests that it would have refused.
    pub mode: ModeSetting,
    /// How it is found out. Default Gradient2.
    pub algorithm: AdaptiveAlgorithm,
    /// Never below. Default 4.
    pub min_limit: Option<u32>,
    /// Never above. Default `maxParallelRequests`.
    pub max_limit: Option<u32>,
}

/// How a limit is found out (Netflix's concurrency-limits, with a view of what is usual that an overload does not change).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum AdaptiveAlgorithm {
    /// Down while answers take more than 1.5 times as long as usual.
    #[default]
    Gradient2,
    /// By the queue that the latency above the least one means.
    Vegas,
    /// Up by one while all is well, down by a tenth on timeouts, 429 and 503.
    AIMD,
}

//! Result of an attempt, as outlier detection counts it.

use std::time::{Duration, Instant};

/// How an attempt ended, as far as the endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointResult {
    /// The response is not a failure of the endpoint.
    Success,
    /// The response has the status 502, 503 or 504.
    GatewayError,
    /// The response has another 5xx status.
    ServerError,
    /// There is no response: no connection, a reset or a timeout.
    LocalOriginFailure,
    /// The response has the status 429: the endpoint works but is overloaded.
    Throttled,
    /// The client or the proxy cancelled the attempt. The latency is at least the elapsed time.
    Cancelled,
}

/// An [`EndpointResult`] with its timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedResult {
    /// How the attempt ended.
    pub result: EndpointResult,
    /// Time to the response head, without the time that the client took to send; zero if there
    /// was no response. For a cancelled attempt, the time until it was cancelled.
    pub took: Duration,
    /// Time at which the result became known.
    pub at: Instant,
}

//! The latency estimate of an endpoint, as a peak EWMA (exponentially weighted moving average).
//!
//! A response that is slower than the estimate replaces it at once. A faster one lowers it with
//! a time constant of ten seconds (linkerd2-proxy and Finagle, "peak EWMA"). A balancer thus
//! avoids an endpoint from its first slow response on, and returns gradually. An endpoint that
//! rejects requests fast would have the lowest latency. A failure therefore counts as at least
//! five seconds, or as its `Retry-After` (linkerd2-proxy, "penalize failures").
//!
//! The cost of a pick is the latency multiplied by the requests in flight, including the new
//! one. Without traffic the estimate decays, so an avoided endpoint is tried again. An endpoint
//! that has never received a request costs nothing until its first one, so it is tried once.
//!
//! The module does not pick an endpoint. That is the task of [`crate::resilience::balance`].

use std::time::{Duration, Instant};

/// Time constant of the exponential decay.
const DECAY_TIME: Duration = Duration::from_secs(10);

/// Latency that is assumed before the first result.
const INITIAL_LATENCY: Duration = Duration::from_millis(30);

/// Lower bound of the estimate, so that a single fast response does not attract all traffic.
const MIN_LATENCY: Duration = Duration::from_millis(1);

/// Minimum latency that a failure counts as.
const MIN_FAILURE_PENALTY: Duration = Duration::from_secs(5);

/// Maximum `Retry-After` that counts as the latency of a failure.
const MAX_FAILURE_PENALTY: Duration = Duration::from_mins(5);

/// Latency estimate of one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct PeakEwma {
    latency_seconds: f64,
    updated_at: Instant,
    has_sample: bool,
}

impl PeakEwma {
    /// Creates an estimate of 30 ms without any result.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            latency_seconds: INITIAL_LATENCY.as_secs_f64(),
            updated_at: now,
            has_sample: false,
        }
    }

    /// Records a response that took `took`.
    pub fn record_success(&mut self, took: Duration, now: Instant) {
        self.update(took.max(MIN_LATENCY), now);
    }

    /// Records a failure, or a rejection with its `Retry-After`.
    pub fn record_failure(&mut self, took: Duration, retry_after: Option<Duration>, now: Instant) {
        self.update(
            took.max(
                retry_after
                    .unwrap_or_default()
                    .clamp(MIN_FAILURE_PENALTY, MAX_FAILURE_PENALTY),
            ),
            now,
        );
    }

    /// Records an attempt that was cancelled before its response, with its elapsed time.
    ///
    /// The time counts only if it exceeds the estimate, because the response would have taken
    /// at least as long.
    pub fn record_cancelled(&mut self, took: Duration, now: Instant) {
        if took > self.latency(now) {
            self.update(took, now);
        }
    }

    /// Returns the cost of one more request, in seconds of latency.
    ///
    /// `in_flight` is the number of requests already in flight. `weight` in `0.0..=1.0` is the
    /// share of traffic that the endpoint can take.
    #[must_use]
    pub fn cost(&self, in_flight: u32, weight: f64, now: Instant) -> f64 {
        if !self.has_sample && in_flight == 0 {
            return 0.0;
        }
        self.latency(now).as_secs_f64()
            * (f64::from(in_flight) / weight.max(f64::MIN_POSITIVE) + 1.0)
    }

    /// Returns the current estimate, after decay.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Duration {
        let floor = MIN_LATENCY.as_secs_f64();
        Duration::from_secs_f64(
            floor + (self.latency_seconds - floor).max(0.0) * self.decay_factor(now),
        )
    }

    fn update(&mut self, took: Duration, now: Instant) {
        let seconds = took.as_secs_f64();
        let remembered = self.decay_factor(now);
        let is_peak = !self.has_sample || seconds > self.latency(now).as_secs_f64();
        self.has_sample = true;
        self.latency_seconds = if is_peak {
            seconds
        } else {
            self.latency_seconds * remembered + seconds * (1.0 - remembered)
        };
        self.updated_at = self.updated_at.max(now);
    }

    /// Returns the share of the old estimate that remains at `now`, in `0.0..=1.0`.
    fn decay_factor(&self, now: Instant) -> f64 {
        (-(now.saturating_duration_since(self.updated_at).as_secs_f64()) / DECAY_TIME.as_secs_f64())
            .exp()
    }
}

#[cfg(test)]
mod tests;

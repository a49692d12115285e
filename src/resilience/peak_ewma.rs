//! What an endpoint's latency is taken for: its peak, forgotten slowly.
//!
//! An answer that is slower than what is known counts at once; one that is faster pulls the value down with a time constant of ten
//! seconds (linkerd2-proxy and Finagle, "peak EWMA"). So a balancer turns away from an endpoint at its first hiccup and comes
//! back carefully. An endpoint that refuses quickly would look like the best of all: a failure therefore counts as at least five
//! seconds, or what it asked to be left alone for (linkerd2-proxy, "penalize failures").
//!
//! The cost of a pick is the latency times what is in flight with the one that comes. Without traffic the value decays, so that an
//! endpoint that was given up gets another chance. One that was never asked costs nothing until it is, so that it is tried once.

use std::time::{Duration, Instant};

/// The time constant of forgetting.
const DECAY_TIME: Duration = Duration::from_secs(10);

/// What is assumed of an endpoint that was asked and has not answered yet.
const INITIAL_LATENCY: Duration = Duration::from_millis(30);

/// Nothing is faster; so that one endpoint's luck is no reason to send it everything.
const MIN_LATENCY: Duration = Duration::from_millis(1);

/// What a failure counts as, at least.
const MIN_FAILURE_PENALTY: Duration = Duration::from_secs(5);

/// What a failure counts as, at most.
const MAX_FAILURE_PENALTY: Duration = Duration::from_mins(5);

/// The latency of one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct PeakEwma {
    latency_seconds: f64,
    updated_at: Instant,
    has_sample: bool,
}

impl PeakEwma {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            latency_seconds: INITIAL_LATENCY.as_secs_f64(),
            updated_at: now,
            has_sample: false,
        }
    }

    /// An answer that took so long.
    pub fn record_success(&mut self, took: Duration, now: Instant) {
        self.update(took.max(MIN_LATENCY), now);
    }

    /// A failure, or a refusal that asked to be left alone for so long.
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

    /// No answer, and nobody waited any longer: it takes at least so long.
    pub fn record_cancelled(&mut self, took: Duration, now: Instant) {
        if took > self.latency(now) {
            self.update(took, now);
        }
    }

    /// What one more request costs, with so many in flight already, of which the endpoint can take `weight` in `0.0..=1.0`.
    #[must_use]
    pub fn cost(&self, in_flight: u32, weight: f64, now: Instant) -> f64 {
        if !self.has_sample && in_flight == 0 {
            return 0.0;
        }
        self.latency(now).as_secs_f64()
            * (f64::from(in_flight) / weight.max(f64::MIN_POSITIVE) + 1.0)
    }

    /// The latency as it is taken now.
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

    /// The share of the old value that is left, in `0.0..=1.0`.
    fn decay_factor(&self, now: Instant) -> f64 {
        (-(now.saturating_duration_since(self.updated_at).as_secs_f64()) / DECAY_TIME.as_secs_f64())
            .exp()
    }
}

#[cfg(test)]
mod tests;

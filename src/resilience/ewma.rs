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
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_counts_at_once_and_decays_slowly() {
        let start = some_instant();
        let mut ewma = PeakEwma::new(start);
        assert_eq!(ewma.latency(start), INITIAL_LATENCY);
        ewma.record_success(400 * MILLI, start);
        assert_eq!(ewma.latency(start), 400 * MILLI);
        let later = start + DECAY_TIME;
        let left = ewma.latency(later).as_secs_f64();
        assert!(
            (left - (0.001 + 0.399 / std::f64::consts::E)).abs() < 1e-6,
            "{left}"
        );
        ewma.record_success(10 * MILLI, later);
        let mixed = ewma.latency(later).as_secs_f64();
        assert!(
            (mixed - (0.4 / std::f64::consts::E + 0.01 * (1.0 - 1.0 / std::f64::consts::E))).abs()
                < 1e-6,
            "{mixed}"
        );
    }

    #[test]
    fn a_fast_failure_costs_more_than_a_slow_success() {
        let start = some_instant();
        let (mut refusing, mut slow) = (PeakEwma::new(start), PeakEwma::new(start));
        refusing.record_failure(MILLI, None, start);
        slow.record_success(2_000 * MILLI, start);
        assert!(refusing.cost(0, 1.0, start) > slow.cost(0, 1.0, start));
        refusing.record_failure(MILLI, Some(Duration::from_mins(1)), start);
        assert_eq!(refusing.latency(start), Duration::from_mins(1));
        refusing.record_failure(MILLI, Some(Duration::from_hours(10)), start);
        assert_eq!(refusing.latency(start), MAX_FAILURE_PENALTY);
    }

    #[test]
    fn cost_rises_with_requests_in_flight_and_falls_with_weight() {
        let start = some_instant();
        let mut ewma = PeakEwma::new(start);
        ewma.record_success(10 * MILLI, start);
        assert!(ewma.cost(1, 1.0, start) > ewma.cost(0, 1.0, start));
        assert!(ewma.cost(4, 0.5, start) > ewma.cost(4, 1.0, start));
        assert!(
            (ewma.cost(0, 0.1, start) - ewma.cost(0, 1.0, start)).abs() < 1e-12,
            "idle ones are picked by their draws alone"
        );
    }

    #[test]
    fn an_untried_endpoint_costs_nothing_until_it_has_a_request_in_flight() {
        let start = some_instant();
        let (mut known, new) = (PeakEwma::new(start), PeakEwma::new(start));
        known.record_success(MILLI, start);
        assert!(new.cost(0, 1.0, start) < known.cost(0, 1.0, start));
        assert!(
            new.cost(1, 1.0, start) > known.cost(1, 1.0, start),
            "and then waited for"
        );
    }

    #[test]
    fn a_cancelled_wait_counts_as_latency_if_longer() {
        let start = some_instant();
        let mut hanging = PeakEwma::new(start);
        hanging.record_cancelled(1_000 * MILLI, start);
        assert_eq!(hanging.latency(start), 1_000 * MILLI);
        assert!(hanging.cost(0, 1.0, start) > 0.0, "it was tried");
        hanging.record_cancelled(10 * MILLI, start);
        assert_eq!(
            hanging.latency(start),
            1_000 * MILLI,
            "who leaves early proves nothing"
        );
    }

    #[test]
    fn a_late_result_does_not_move_the_clock_back() {
        let start = some_instant();
        let mut ewma = PeakEwma::new(start + DECAY_TIME);
        ewma.record_success(MILLI, start + DECAY_TIME);
        ewma.record_success(100 * MILLI, start);
        assert_eq!(ewma.latency(start + DECAY_TIME), 100 * MILLI);
        assert_eq!(ewma.latency(start), 100 * MILLI);
    }
}

//! Which endpoints are no longer asked because of how they answer.
//!
//! An active check asks whether an endpoint lives; this looks at what it does with real requests. Runs of failures are counted
//! with every result; rates are compared with those of its peers once an interval ([`by_results`]), latencies twice ([`by_latency`]):
//! in a full interval the answers from before would hide for too long that an endpoint has become slow. Who is found out is ejected
//! for a while, longer each time it is found out anew. It does not come back with full traffic: when its time is over it is on
//! *probation*, and one request at a time may try it. One success readmits it, one failure ejects it again for the shortest time, so
//! that one that has healed is not left alone for long. One that was too slow has to be quick.
//!
//! | standing | a result | time over |
//! | --- | --- | --- |
//! | in | may end a run of failures, which may eject | - |
//! | ejected | counts nothing | probation |
//! | probation | of the probe: in, or ejected again; of others: counts nothing | - |
//!
//! Each ejection begins a new generation, and a permit carries the one it was given in, so that a result that comes late
//! neither ejects nor readmits. A probe that is given up gives its place back, and so does one of which nothing is heard for long.
//!
//! Who may be ejected at all is a question about all endpoints of a backend, see [`may_eject`]: never the last one, and not more
//! than a share of them. Unlike Envoy's share, which makes none of three at ten percent, at least one may be ejected if there are
//! two (envoyproxy/envoy#21142 and the defaults' table in `outlier_detection.proto`).

mod cause;
mod config;
mod latency;
mod sweep;

use std::time::{Duration, Instant};

use crate::resilience::latency_histogram::LatencyHistogram;

pub use crate::resilience::outlier::{
    cause::EjectionCause,
    config::{
        ConsecutiveThresholds, FailurePercentageRule, InvalidOutlier, OutlierConfig,
        SuccessRateRule,
    },
    sweep::{IntervalResults, find_outliers_by_latency, find_outliers_by_results, may_eject},
};

/// Successes that prove an endpoint well enough to forget one of its ejections, with at most one failure for each hundred of them.
/// Time alone proves nothing (envoyproxy/envoy#21142).
const PROVEN_SUCCESSES: u32 = 10;
const MAX_PROVEN_FAILURE_RATIO: f64 = 0.01;

/// Half intervals over which latencies are gathered until they are enough to judge.
const MAX_GATHERED_HALF_INTERVALS: u32 = 6;

/// After so long without a result, another request may be the probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Ejections that still lengthen the next one; only to keep the arithmetic small, the maximum is reached long before.
const MAX_TIMES_EJECTED: u32 = 1_000;

/// The share by which an ejection is lengthened at random, so that several endpoints do not come back at once.
const EJECTION_JITTER: f64 = 0.1;

/// A request that waits for an idempotent one to be the probe waits no longer than this.
const NON_IDEMPOTENT_PROBE_DELAY: Duration = Duration::from_secs(1);

/// How an attempt ended, as far as the endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointResult {
    /// An answer that is no failure of the endpoint.
    Success,
    /// A 502, 503 or 504.
    GatewayError,
    /// Another 5xx.
    ServerError,
    /// No answer: no connection, a reset, a timeout.
    LocalOriginFailure,
    /// A 429: it lives, and is asked too much.
    Throttled,
    /// Given up by the client or by us; says no more than that it takes at least as long as was waited.
    Cancelled,
}

/// What an endpoint may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionState {
    /// Everything.
    NotEjected,
    /// Nothing, until then.
    Ejected {
        /// The end of it.
        until: Instant,
    },
    /// One request at a time.
    Probation {
        /// When it began.
        since: Instant,
        /// When the one was let out, if it is.
        probe_started_at: Option<Instant>,
    },
}

/// The right to count one result.
#[derive(Debug)]
#[must_use = "a permit that is not settled keeps a probe's place"]
pub struct OutlierPermit {
    generation: u64,
    is_probe: bool,
}

impl OutlierPermit {
    /// Whether the endpoint's return hangs on this result.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}

/// What a result does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutlierVerdict {
    /// Nothing.
    Unchanged,
    /// The endpoint should be ejected, if it may be.
    ShouldEject(EjectionCause),
    /// It failed its probe and is ejected again, for so long.
    EjectedAgain(EjectionCause, Duration),
    /// It passed its probe.
    Readmitted,
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
pub struct OutlierDetector {
    ejection_state: EjectionState,
    generation: u64,
    consecutive_failures: u32,
    consecutive_gateway_errors: u32,
    consecutive_local_origin_failures: u32,
    times_ejected: u32,
    /// Of the interval that is under way.
    interval_results: IntervalResults,
    latencies: LatencyHistogram,
    /// Half intervals over which these were gathered so far, before the one that is under way.
    gathered_half_intervals: u32,
    /// Successes and failures since an ejection was last taken back.
    results_since_forgiven: (u32, u32),
    /// What a probe may take, of one that was too slow.
    probe_latency_limit: Option<Duration>,
}

impl Default for OutlierDetector {
    fn default() -> Self {
        Self {
            ejection_state: EjectionState::NotEjected,
            generation: 0,
            consecutive_failures: 0,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: 0,
            times_ejected: 0,
            interval_results: IntervalResults::default(),
            latencies: LatencyHistogram::default(),
            gathered_half_intervals: 0,
            results_since_forgiven: (0, 0),
            probe_latency_limit: None,
        }
    }
}

impl OutlierDetector {
    /// What the endpoint may be used for.
    #[must_use]
    pub fn ejection_state(&self) -> EjectionState {
        self.ejection_state
    }

    /// Ejections that lengthen the next one.
    #[must_use]
    pub fn times_ejected(&self) -> u32 {
        self.times_ejected
    }

    /// The right to count one result of an endpoint that is in.
    pub fn issue_permit(&self) -> OutlierPermit {
        OutlierPermit {
            generation: self.generation,
            is_probe: false,
        }
    }

    /// The place of the probe, if the endpoint is on probation and it is free. A request that could not be repeated takes it only if
    /// none that could has come for a while.
    pub fn try_acquire_probe(
        &mut self,
        is_idempotent: bool,
        now: Instant,
    ) -> Option<OutlierPermit> {
        let EjectionState::Probation {
            since,
            probe_started_at,
        } = self.ejection_state
        else {
            return None;
        };
        let is_taken = probe_started_at.is_some_and(|begun| now < begun + PROBE_TIMEOUT);
        if is_taken || (!is_idempotent && now < since + NON_IDEMPOTENT_PROBE_DELAY) {
            return None;
        }
        // What an earlier one may still tell comes too late.
        self.generation += 1;
        self.ejection_state = EjectionState::Probation {
            since,
            probe_started_at: Some(now),
        };
        Some(OutlierPermit {
            generation: self.generation,
            is_probe: true,
        })
    }

    /// Counts a result. `random` is uniform in `0..1`.
    pub fn settle(
        &mut self,
        config: &OutlierConfig,
        permit: &OutlierPermit,
        result: EndpointResult,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> OutlierVerdict {
        if permit.generation != self.generation {
            return OutlierVerdict::Unchanged;
        }
        if permit.is_probe {
            return self.settle_probe(config, result, took, now, random);
        }
        if self.ejection_state != EjectionState::NotEjected {
            return OutlierVerdict::Unchanged;
        }
        self.interval_results.record(result);
        self.latencies.record_result(result, took);
        let result = match result {
            EndpointResult::Cancelled => return OutlierVerdict::Unchanged,
            EndpointResult::Throttled => EndpointResult::Success,
            other => other,
        };
        self.count_consecutive(result);
        let reached = |run: u32, limit: u32| limit > 0 && run >= limit;
        let ConsecutiveThresholds {
            failures,
            gateway_errors,
            local_origin_failures: local_origin,
        } = config.consecutive_thresholds();
        if reached(self.consecutive_failures, failures) {
            OutlierVerdict::ShouldEject(EjectionCause::Consecutive5xx(self.consecutive_failures))
        } else if reached(self.consecutive_gateway_errors, gateway_errors) {
            OutlierVerdict::ShouldEject(EjectionCause::ConsecutiveGatewayErrors(
                self.consecutive_gateway_errors,
            ))
        } else if reached(self.consecutive_local_origin_failures, local_origin) {
            OutlierVerdict::ShouldEject(EjectionCause::ConsecutiveLocalOriginFailures(
                self.consecutive_local_origin_failures,
            ))
        } else {
            OutlierVerdict::Unchanged
        }
    }

    /// Ejects it; for how long.
    pub fn eject(
        &mut self,
        config: &OutlierConfig,
        cause: EjectionCause,
        now: Instant,
        random: f64,
    ) -> Duration {
        self.times_ejected = (self.times_ejected + 1).min(MAX_TIMES_EJECTED);
        self.probe_latency_limit = match cause {
            EjectionCause::HighLatency { limit, .. } => Some(limit),
            _ => None,
        };
        self.enter_ejected(config.ejection_time(self.times_ejected), now, random)
    }

    /// Ends an ejection whose time is over; whether it did.
    pub fn end_expired_ejection(&mut self, now: Instant) -> bool {
        match self.ejection_state {
            EjectionState::Ejected { until } if now >= until => {
                self.ejection_state = EjectionState::Probation {
                    since: now,
                    probe_started_at: None,
                };
                true
            }
            _ => false,
        }
    }

    /// Lets it in again whatever it did, as when nobody watches any more.
    pub fn uneject(&mut self) {
        (
            self.ejection_state,
            self.times_ejected,
            self.probe_latency_limit,
        ) = (EjectionState::NotEjected, 0, None);
        self.start_generation();
    }

    /// Ends half an interval: the latencies of late, and the next half begins. They are kept for it while they are too few.
    pub fn end_half_interval(&mut self) -> LatencyHistogram {
        let is_over = self.latencies.has_enough_samples()
            || self.gathered_half_intervals + 1 == MAX_GATHERED_HALF_INTERVALS;
        self.gathered_half_intervals = if is_over {
            0
        } else {
            self.gathered_half_intervals + 1
        };
        if is_over {
            std::mem::take(&mut self.latencies)
        } else {
            self.latencies.clone()
        }
    }

    /// Ends an interval: what was recorded in it, and the next one begins. Proven health takes one ejection back.
    pub fn end_interval(&mut self) -> IntervalResults {
        let results = std::mem::take(&mut self.interval_results);
        let (successes, failures) = (
            self.results_since_forgiven
                .0
                .saturating_add(results.successes()),
            self.results_since_forgiven
                .1
                .saturating_add(results.failures()),
        );
        let is_well = f64::from(failures) <= f64::from(successes) * MAX_PROVEN_FAILURE_RATIO;
        if self.ejection_state == EjectionState::NotEjected
            && is_well
            && successes >= PROVEN_SUCCESSES
        {
            self.times_ejected = self.times_ejected.saturating_sub(1);
        }
        self.results_since_forgiven = if is_well && successes < PROVEN_SUCCESSES {
            (successes, failures)
        } else {
            (0, 0)
        };
        results
    }

    fn settle_probe(
        &mut self,
        config: &OutlierConfig,
        result: EndpointResult,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> OutlierVerdict {
        let cause = match (result, self.probe_latency_limit) {
            (EndpointResult::Cancelled, _) => {
                if let EjectionState::Probation { since, .. } = self.ejection_state {
                    self.ejection_state = EjectionState::Probation {
                        since,
                        probe_started_at: None,
                    };
                }
                return OutlierVerdict::Unchanged;
            }
            (EndpointResult::Success | EndpointResult::Throttled, Some(limit)) if took > limit => {
                EjectionCause::SlowProbe { took, limit }
            }
            (EndpointResult::Success | EndpointResult::Throttled, _) => {
                (self.ejection_state, self.probe_latency_limit) = (EjectionState::NotEjected, None);
                self.start_generation();
                return OutlierVerdict::Readmitted;
            }
            (
                EndpointResult::GatewayError
                | EndpointResult::ServerError
                | EndpointResult::LocalOriginFailure,
                _,
            ) => EjectionCause::FailedProbe,
        };
        OutlierVerdict::EjectedAgain(
            cause,
            self.enter_ejected(config.ejection_time(1), now, random),
        )
    }

    fn enter_ejected(&mut self, duration: Duration, now: Instant, random: f64) -> Duration {
        let duration = duration.mul_f64(1.0 + EJECTION_JITTER * random);
        self.ejection_state = EjectionState::Ejected {
            until: now + duration,
        };
        self.start_generation();
        duration
    }

    fn count_consecutive(&mut self, result: EndpointResult) {
        let grow =
            |run: &mut u32, goes_on: bool| *run = if goes_on { run.saturating_add(1) } else { 0 };
        grow(
            &mut self.consecutive_failures,
            result != EndpointResult::Success,
        );
        grow(
            &mut self.consecutive_gateway_errors,
            result == EndpointResult::GatewayError,
        );
        grow(
            &mut self.consecutive_local_origin_failures,
            result == EndpointResult::LocalOriginFailure,
        );
    }

    fn start_generation(&mut self) {
        self.generation += 1;
        (
            self.consecutive_failures,
            self.consecutive_gateway_errors,
            self.consecutive_local_origin_failures,
        ) = (0, 0, 0);
        (self.interval_results, self.results_since_forgiven) = (IntervalResults::default(), (0, 0));
        (self.latencies, self.gathered_half_intervals) = (LatencyHistogram::default(), 0);
    }
}

#[cfg(test)]
mod tests;

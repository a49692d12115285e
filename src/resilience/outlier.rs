//! Outlier detection: the ejection of endpoints whose responses stand out.
//!
//! An active check tests whether an endpoint is alive. This module judges how an endpoint
//! handles real requests:
//!
//! - Consecutive failures are counted with every result.
//! - Rates are compared with those of the peers once per interval
//!   ([`find_outliers_by_results`]).
//! - Latencies are compared twice per interval ([`find_outliers_by_latency`]). In a full
//!   interval, older latencies would hide a recent slowdown for too long.
//!
//! An outlier is ejected for a time that grows with each ejection. It does not return to full
//! traffic at once. It first enters *probation*, in which one request at a time may probe it. A
//! success readmits it. A failure ejects it again for the base time, so a recovered endpoint
//! returns soon. An endpoint that was ejected for its latency needs a fast probe.
//!
//! | state | a result | the time is over |
//! | --- | --- | --- |
//! | not ejected | is counted; consecutive failures may eject | - |
//! | ejected | is not counted | probation |
//! | probation | of the probe: readmits or ejects again; of others: is not counted | - |
//!
//! Each ejection starts a new generation, and a permit carries the generation in which it was
//! issued. A late result therefore neither ejects nor readmits. A cancelled probe, or one
//! without a result for ten seconds, makes room for another.
//!
//! [`may_eject`] decides whether a backend can spare an endpoint at all. It protects the last
//! available endpoint and limits the ejected share. With two endpoints or more, at least one
//! may be ejected, unless the share is zero. In Envoy, a share of 10 % of three endpoints
//! permits no ejection (envoyproxy/envoy#21142 and the defaults in `outlier_detection.proto`).
//!
//! The module does not know addresses and does not select endpoints.

mod cause;
mod config;
mod endpoint_result;
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
    endpoint_result::{EndpointResult, TimedResult},
    sweep::{IntervalResults, find_outliers_by_latency, find_outliers_by_results, may_eject},
};

/// Successes after which one ejection is forgiven, with at most 1 % as many failures.
///
/// Time alone proves nothing (envoyproxy/envoy#21142).
const PROVEN_SUCCESSES: u32 = 10;
const MAX_PROVEN_FAILURE_RATIO: f64 = 0.01;

/// Maximum number of half intervals over which latencies are collected until they suffice.
const MAX_GATHERED_HALF_INTERVALS: u32 = 6;

/// Time without a result after which another request may probe the endpoint.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum count of ejections. It keeps the arithmetic small; the maximum ejection time is
/// reached far earlier.
const MAX_TIMES_EJECTED: u32 = 1_000;

/// Maximum random extension of an ejection, as a share of its time. It prevents the
/// simultaneous return of several endpoints.
const EJECTION_JITTER: f64 = 0.1;

/// Time in probation before a request that is not idempotent may be the probe.
const NON_IDEMPOTENT_PROBE_DELAY: Duration = Duration::from_secs(1);

/// Which traffic an endpoint may receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionState {
    /// The endpoint receives its normal traffic.
    NotEjected,
    /// The endpoint receives no traffic until the ejection ends.
    Ejected {
        /// Time at which probation begins.
        until: Instant,
    },
    /// The endpoint receives one probe at a time.
    Probation {
        /// Time at which the probation began.
        since: Instant,
        /// Start of the current probe, or `None` if no probe is in flight.
        probe_started_at: Option<Instant>,
    },
}

/// Permission to count one result in the generation that issued it.
#[derive(Debug)]
#[must_use = "a permit that is not settled keeps a probe's place"]
pub struct OutlierPermit {
    generation: u64,
    is_probe: bool,
}

impl OutlierPermit {
    /// Returns whether this result decides on the readmission of the endpoint.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}

/// Effect of a result on the endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutlierVerdict {
    /// The result changes nothing.
    Unchanged,
    /// The caller should eject the endpoint if [`may_eject`] allows it.
    ShouldEject(EjectionCause),
    /// The probe failed, and the endpoint is ejected again for this time.
    EjectedAgain(EjectionCause, Duration),
    /// The probe passed, and the endpoint receives its normal traffic again.
    Readmitted,
}

/// Outlier state of one endpoint.
#[derive(Debug, Clone)]
pub struct OutlierDetector {
    ejection_state: EjectionState,
    generation: u64,
    consecutive_failures: u32,
    consecutive_gateway_errors: u32,
    consecutive_local_origin_failures: u32,
    times_ejected: u32,
    /// Results of the current interval.
    interval_results: IntervalResults,
    latencies: LatencyHistogram,
    /// Completed half intervals whose latencies are still in `latencies`.
    gathered_half_intervals: u32,
    /// Successes and failures that count towards forgiving the next ejection.
    results_since_forgiven: (u32, u32),
    /// Maximum latency of a probe, set only after an ejection for high latency.
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
    /// Returns which traffic the endpoint may receive.
    #[must_use]
    pub fn ejection_state(&self) -> EjectionState {
        self.ejection_state
    }

    /// Issues a permit to count one result of an endpoint that is not ejected.
    pub fn issue_permit(&self) -> OutlierPermit {
        OutlierPermit {
            generation: self.generation,
            is_probe: false,
        }
    }

    /// Issues the permit for a probe, if the endpoint is on probation and no probe is in
    /// flight.
    ///
    /// A request that is not idempotent receives it only after a delay, so that idempotent
    /// requests probe first.
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
        // The new generation makes the result of an earlier probe late.
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

    /// Records a result and returns its effect. `random` is uniform in `0..1`.
    ///
    /// A permit of an earlier generation has no effect.
    pub fn settle(
        &mut self,
        config: &OutlierConfig,
        permit: &OutlierPermit,
        timed: TimedResult,
        random: f64,
    ) -> OutlierVerdict {
        if permit.generation != self.generation {
            return OutlierVerdict::Unchanged;
        }
        if permit.is_probe {
            return self.settle_probe(config, timed, random);
        }
        if self.ejection_state != EjectionState::NotEjected {
            return OutlierVerdict::Unchanged;
        }
        self.interval_results.record(timed.result);
        self.latencies.record_result(timed.result, timed.took);
        let result = match timed.result {
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

    /// Ejects the endpoint and returns the time of the ejection, including its jitter.
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

    /// Moves an endpoint whose ejection has ended to probation, and returns whether it did.
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

    /// Readmits the endpoint and clears its history, for example when detection is disabled.
    pub fn uneject(&mut self) {
        (
            self.ejection_state,
            self.times_ejected,
            self.probe_latency_limit,
        ) = (EjectionState::NotEjected, 0, None);
        self.start_generation();
    }

    /// Ends half an interval and returns its latencies.
    ///
    /// The latencies also remain for the next half interval, until there are enough of them.
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

    /// Ends an interval and returns its results. Enough successes forgive one ejection.
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
        timed: TimedResult,
        random: f64,
    ) -> OutlierVerdict {
        let took = timed.took;
        let cause = match (timed.result, self.probe_latency_limit) {
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
            self.enter_ejected(config.ejection_time(1), timed.at, random),
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

//! Outlier detection for the endpoints of a backend.
//!
//! Each attempt is observed and settled exactly once. Its result can eject the endpoint at
//! once, and a periodic sweep ejects endpoints that stand out among their peers. Both decide
//! under one lock whether the backend can spare the endpoint, so that two ejections at once
//! cannot remove the last one.
//!
//! The rules are in [`crate::resilience::outlier`]; this module applies them and emits events.
//! It does not decide which response counts as a failure.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    policy::snapshot::{LoadBalancerSpec, OutlierDetectionSpec},
    resilience::{
        Mode,
        outlier::{
            self, EjectionCause, EjectionState, EndpointResult, OutlierDetector, OutlierPermit,
            OutlierVerdict, TimedResult,
        },
    },
    state::topology::{backend::BackendState, endpoint::EndpointState},
    telemetry::event::Event,
};

/// Observation of one attempt. If it is dropped without a result, the attempt counts as
/// cancelled, and another request may be the probe.
#[derive(Debug)]
#[must_use = "an observation that is dropped at once sees nothing"]
pub struct AttemptObservation {
    backend: Arc<BackendState>,
    endpoint_index: usize,
    permit: Option<OutlierPermit>,
    started_at: Instant,
}

impl BackendState {
    /// Starts to observe an attempt at a selected endpoint.
    ///
    /// Returns `None` if neither outlier detection nor the load balancer needs its result.
    #[must_use]
    pub fn observe_attempt(
        self: &Arc<Self>,
        index: usize,
        now: Instant,
    ) -> Option<AttemptObservation> {
        let is_watched = self.spec.outlier_detection.is_some();
        if !is_watched && self.spec.load_balancer != LoadBalancerSpec::PeakEwma {
            return None;
        }
        let permit = is_watched.then(|| {
            let mut detector = self.endpoints[index].outlier_detector();
            match detector.ejection_state() {
                EjectionState::NotEjected => Some(detector.issue_permit()),
                // In shadow mode and in panic mode, an endpoint on probation receives ordinary
                // requests. The first one is the probe, and the results of the others do not
                // count.
                EjectionState::Ejected { .. } | EjectionState::Probation { .. } => {
                    detector.try_acquire_probe(true, now)
                }
            }
        });
        Some(AttemptObservation {
            backend: self.clone(),
            endpoint_index: index,
            permit: permit.flatten(),
            started_at: now,
        })
    }

    /// Selects an endpoint on probation that this request may probe; `None` if there is none.
    ///
    /// A request that is not repeatable may be the probe only after one second of probation.
    pub fn try_acquire_probe(
        self: &Arc<Self>,
        is_repeatable: bool,
        now: Instant,
    ) -> Option<(usize, AttemptObservation)> {
        if !self.has_probation() {
            return None;
        }
        let healthy = self
            .probation_endpoints()
            .into_iter()
            .filter(|index| self.is_healthy(*index));
        healthy.into_iter().find_map(|index| {
            let permit = self.endpoints[index]
                .outlier_detector()
                .try_acquire_probe(is_repeatable, now)?;
            Some((
                index,
                AttemptObservation {
                    backend: self.clone(),
                    endpoint_index: index,
                    permit: Some(permit),
                    started_at: now,
                },
            ))
        })
    }

    /// Ends expired ejections. At the end of an interval, it also compares the endpoints and
    /// ejects outliers.
    ///
    /// Latencies are compared every half interval, all other results every interval.
    pub fn sweep_outliers(&self, now: Instant) {
        let Some(outlier) = &self.spec.outlier_detection else {
            return;
        };
        // An endpoint on probation is still not selected, but may receive a probe.
        let has_expired = |endpoint: &Arc<EndpointState>| {
            endpoint.is_ejected()
                && endpoint.update_outlier_detector(|detector| detector.end_expired_ejection(now))
        };
        if self
            .endpoints
            .iter()
            .filter(|endpoint| has_expired(endpoint))
            .count()
            > 0
        {
            self.refresh_selectable();
        }
        let Some(completed_half_intervals) = self
            .counters
            .count_ended_half_interval(outlier.config.interval() / 2, now)
        else {
            return;
        };
        let (endpoint_indices, latencies) =
            self.collect_from_unejected(|tier, detector| (tier, detector.end_half_interval()));
        let mut outliers: Vec<_> = outlier::find_outliers_by_latency(&outlier.config, &latencies)
            .into_iter()
            .map(|(position, cause)| (endpoint_indices[position], cause))
            .collect();
        if completed_half_intervals.is_multiple_of(2) {
            let (endpoint_indices, records) =
                self.collect_from_unejected(|_, detector| detector.end_interval());
            outliers.extend(
                outlier::find_outliers_by_results(&outlier.config, &records)
                    .into_iter()
                    .map(|(position, cause)| (endpoint_indices[position], cause)),
            );
        }
        for (index, cause) in outliers {
            if !self.endpoints[index].is_ejected() && !self.try_eject(outlier, index, cause, now) {
                return;
            }
        }
    }

    /// Calls `collect` for each endpoint that is not ejected, with its tier. Returns the
    /// indices of these endpoints and the results.
    fn collect_from_unejected<T>(
        &self,
        collect: impl Fn(usize, &mut OutlierDetector) -> T,
    ) -> (Vec<usize>, Vec<T>) {
        let members = self
            .tiers()
            .flat_map(|(tier, members)| members.iter().map(move |index| (tier, *index)));
        let results = members.filter_map(|(tier, index)| {
            let mut detector = self.endpoints[index].outlier_detector();
            (detector.ejection_state() == EjectionState::NotEjected)
                .then(|| (index, collect(tier, &mut detector)))
        });
        results.unzip()
    }

    /// Ejects an endpoint if the backend can spare it, and returns whether it did.
    fn try_eject(
        &self,
        outlier: &OutlierDetectionSpec,
        index: usize,
        cause: EjectionCause,
        now: Instant,
    ) -> bool {
        let total = self.endpoints.len();
        let ejected_count = || self.counters.ejected.load(Ordering::Relaxed);
        // Most ejections are rejected because too many endpoints are ejected already. That
        // check does not need the state of all endpoints.
        if !outlier::may_eject(&outlier.config, total, ejected_count(), total) {
            return false;
        }
        let _ejection_lock = self.counters.ejection_lock.lock();
        let is_eligible = |index: usize| {
            !self.endpoints[index].is_ejected() && !self.endpoints[index].is_retired()
        };
        let available = (0..total)
            .filter(|index| is_eligible(*index) && self.is_healthy(*index))
            .count();
        if !is_eligible(index)
            || !outlier::may_eject(&outlier.config, total, ejected_count(), available)
        {
            return false;
        }
        let ejection_time = self.endpoints[index].update_outlier_detector(|detector| {
            detector.eject(&outlier.config, cause, now, fastrand::f64())
        });
        self.emit_ejection(outlier, index, cause, ejection_time);
        true
    }

    fn emit_ejection(
        &self,
        outlier: &OutlierDetectionSpec,
        index: usize,
        cause: EjectionCause,
        ejection_time: Duration,
    ) {
        let endpoint = self.endpoints[index].label.clone();
        self.telemetry.emit(Event::EndpointEjected {
            backend: self.spec.name.clone(),
            endpoint,
            cause,
            ejection_time,
            is_shadow: outlier.mode == Mode::Shadow,
        });
    }
}

impl AttemptObservation {
    /// Records the result of the attempt and the time until its response. `retry_after` is the
    /// delay that the endpoint requested.
    pub fn settle(
        mut self,
        result: EndpointResult,
        latency: Duration,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let endpoint = &self.backend.endpoints[self.endpoint_index];
        if self.backend.spec.load_balancer == LoadBalancerSpec::PeakEwma {
            match result {
                EndpointResult::Success => endpoint.peak_ewma().record_success(latency, now),
                EndpointResult::Throttled
                | EndpointResult::GatewayError
                | EndpointResult::ServerError
                | EndpointResult::LocalOriginFailure => {
                    endpoint
                        .peak_ewma()
                        .record_failure(latency, retry_after, now)
                }
                EndpointResult::Cancelled => endpoint.peak_ewma().record_cancelled(latency, now),
            }
        }
        self.record_result(result, latency, now);
    }

    /// Settles a probe as successful once its response has started. The response may be a
    /// stream that lasts for hours.
    pub fn record_response_start(&mut self, latency: Duration, now: Instant) {
        if self.permit.as_ref().is_some_and(OutlierPermit::is_probe) {
            self.record_result(EndpointResult::Success, latency, now);
        }
    }

    fn record_result(&mut self, result: EndpointResult, latency: Duration, now: Instant) {
        let (Some(permit), Some(outlier)) =
            (self.permit.take(), &self.backend.spec.outlier_detection)
        else {
            return;
        };
        let endpoint = &self.backend.endpoints[self.endpoint_index];
        let timed = TimedResult {
            result,
            took: latency,
            at: now,
        };
        let verdict = endpoint.update_outlier_detector(|detector| {
            detector.settle(&outlier.config, &permit, timed, fastrand::f64())
        });
        match verdict {
            OutlierVerdict::Unchanged => {}
            OutlierVerdict::ShouldEject(cause) => {
                _ = self
                    .backend
                    .try_eject(outlier, self.endpoint_index, cause, now)
            }
            OutlierVerdict::EjectedAgain(cause, ejection_time) => {
                self.backend
                    .emit_ejection(outlier, self.endpoint_index, cause, ejection_time)
            }
            OutlierVerdict::Readmitted => {
                let is_shadow = !self.backend.enforces_outlier_detection();
                if !is_shadow {
                    endpoint.warm_up_from(now);
                }
                self.backend.telemetry.emit(Event::EndpointReadmitted {
                    backend: self.backend.spec.name.clone(),
                    endpoint: endpoint.label.clone(),
                    is_shadow,
                });
            }
        }
    }
}

impl Drop for AttemptObservation {
    fn drop(&mut self) {
        // No result and no latency are known.
        self.record_result(EndpointResult::Cancelled, Duration::ZERO, self.started_at);
    }
}

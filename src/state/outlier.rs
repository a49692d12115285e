//! Watching how endpoints answer: each attempt is observed, and settled exactly once.
//!
//! Who stands out by its own results is ejected with the result that decides; who stands out against its peers, in a sweep. Both
//! ask under one lock whether the backend can spare it, so that two ejections at once cannot take the last one.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::backend::BackendState;
use crate::{
    policy::snapshot::{Balancer, OutlierSpec},
    resilience::{
        Mode,
        health::Health,
        outlier::{self, Attempted, Cause, HostPermit, Standing, Verdict},
    },
    telemetry::event::Event,
};

/// An attempt that is observed. Dropped without a result it says nothing, and gives a probe's place back.
#[derive(Debug)]
#[must_use = "an observation that is dropped at once sees nothing"]
pub struct Observation {
    backend: Arc<BackendState>,
    index: usize,
    permit: Option<HostPermit>,
    began: Instant,
}

impl BackendState {
    /// Observes an attempt at an endpoint that was picked; `None` if nobody wants to know.
    #[must_use]
    pub fn observe(self: &Arc<Self>, index: usize, now: Instant) -> Option<Observation> {
        let is_watched = self.spec.outlier.is_some();
        if !is_watched && self.spec.balancer != Balancer::PeakEwma {
            return None;
        }
        let permit = is_watched.then(|| {
            let mut host = self.endpoints[index].host();
            match host.standing() {
                Standing::In => Some(host.admit()),
                // In shadow mode it is asked all the same, and who asks first is the probe.
                Standing::Ejected { .. } | Standing::Probation { .. } => host.try_probe(true, now),
            }
        });
        Some(Observation { backend: self.clone(), index, permit: permit.flatten(), began: now })
    }

    /// An endpoint on probation that this request may try, if there is one.
    pub fn probe(self: &Arc<Self>, is_repeatable: bool, now: Instant) -> Option<(usize, Observation)> {
        if !self.has_probation() {
            return None;
        }
        let alive = self.on_probation().into_iter().filter(|index| self.spec.check.is_none() || self.endpoints[*index].health() != Health::Unhealthy);
        alive.into_iter().find_map(|index| {
            let permit = self.endpoints[index].host().try_probe(is_repeatable, now)?;
            Some((index, Observation { backend: self.clone(), index, permit: Some(permit), began: now }))
        })
    }

    /// Ends ejections whose time is over, and compares the endpoints when an interval is.
    pub fn tick(&self, now: Instant) {
        let Some(outlier) = &self.spec.outlier else { return };
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.is_out()) {
            if endpoint.host().tick(now) {
                // It stays out of the picks; the version tells that it can be tried.
                endpoint.set_out(true);
                self.review();
            }
        }
        let mut swept = self.counters.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *swept.get_or_insert(now);
        if now.saturating_duration_since(last) >= outlier.config.interval() {
            *swept = Some(now);
            drop(swept);
            self.sweep(outlier, now);
        }
    }

    fn sweep(&self, outlier: &OutlierSpec, now: Instant) {
        let ended = self.endpoints.iter().enumerate().filter_map(|(index, endpoint)| {
            let mut host = endpoint.host();
            (host.standing() == Standing::In).then(|| (index, host.end_interval()))
        });
        let (indices, records): (Vec<usize>, Vec<_>) = ended.unzip();
        for (place, cause) in outlier::sweep(&outlier.config, &records) {
            self.eject(outlier, indices[place], cause, now);
        }
    }

    fn eject(&self, outlier: &OutlierSpec, index: usize, cause: Cause, now: Instant) {
        let _turn = self.counters.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in = |index: usize| self.endpoints[index].host().standing() == Standing::In;
        let is_healthy = |index: usize| self.spec.check.is_none() || self.endpoints[index].health() != Health::Unhealthy;
        let total = self.endpoints.len();
        let ejected = (0..total).filter(|index| !is_in(*index)).count();
        let available = (0..total).filter(|index| is_in(*index) && is_healthy(*index)).count();
        if !is_in(index) || !outlier::may_eject(&outlier.config, total, ejected, available) {
            return;
        }
        let long = self.endpoints[index].host().eject(&outlier.config, now, fastrand::f64());
        self.ejected(outlier, index, cause, long);
    }

    fn ejected(&self, outlier: &OutlierSpec, index: usize, cause: Cause, long: Duration) {
        let endpoint = &self.endpoints[index];
        endpoint.set_out(true);
        let is_shadow = outlier.mode == Mode::Shadow;
        self.telemetry.emit(Event::EndpointEjected { backend: self.spec.name.clone(), endpoint: endpoint.label.clone(), cause, long, is_shadow });
    }
}

impl Observation {
    /// Tells how the attempt went, how long its answer took, and how long the endpoint asked to be left alone.
    pub fn settle(mut self, result: Attempted, took: Duration, leave_alone: Option<Duration>, now: Instant) {
        let endpoint = &self.backend.endpoints[self.index];
        if self.backend.spec.balancer == Balancer::PeakEwma {
            match result {
                Attempted::Success => endpoint.latency().succeeded(took, now),
                Attempted::Throttled | Attempted::GatewayError | Attempted::ServerError | Attempted::LocalOrigin => endpoint.latency().failed(took, leave_alone, now),
                Attempted::Cancelled => {}
            }
        }
        self.count(result, took, now);
    }

    fn count(&mut self, result: Attempted, took: Duration, now: Instant) {
        let (Some(permit), Some(outlier)) = (self.permit.take(), &self.backend.spec.outlier) else { return };
        let endpoint = &self.backend.endpoints[self.index];
        let verdict = endpoint.host().settle(&outlier.config, &permit, result, took, now, fastrand::f64());
        match verdict {
            Verdict::Stays => {}
            Verdict::Suspect(cause) => self.backend.eject(outlier, self.index, cause, now),
            Verdict::Again(long) => self.backend.ejected(outlier, self.index, Cause::Probe, long),
            Verdict::Readmitted => {
                endpoint.warm_up_from(now);
                endpoint.set_out(false);
                self.backend.telemetry.emit(Event::EndpointReadmitted { backend: self.backend.spec.name.clone(), endpoint: endpoint.label.clone() });
            }
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        // Without a verdict the time does not matter.
        self.count(Attempted::Cancelled, Duration::ZERO, self.began);
    }
}

//! Watching how endpoints answer: each attempt is observed, and settled exactly once.
//!
//! Who stands out by its own results is ejected with the result that decides; who stands out against its peers, in a sweep. Both
//! ask under one lock whether the backend can spare it, so that two ejections at once cannot take the last one.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{backend::BackendState, endpoint::EndpointState};
use crate::{
    policy::snapshot::{Balancer, OutlierSpec},
    resilience::{
        Mode,
        outlier::{self, Attempted, Cause, Host, HostPermit, Standing, Verdict},
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
                // In shadow mode, and when nobody else is left, it is asked all the same, and who asks first is the probe.
                Standing::Ejected { .. } | Standing::Probation { .. } => host.try_probe(true, now),
            }
        });
        Some(Observation {
            backend: self.clone(),
            index,
            permit: permit.flatten(),
            began: now,
        })
    }

    /// An endpoint on probation that this request may try, if there is one.
    pub fn probe(
        self: &Arc<Self>,
        is_repeatable: bool,
        now: Instant,
    ) -> Option<(usize, Observation)> {
        if !self.has_probation() {
            return None;
        }
        let alive = self
            .on_probation()
            .into_iter()
            .filter(|index| self.is_healthy(*index));
        alive.into_iter().find_map(|index| {
            let permit = self.endpoints[index].host().try_probe(is_repeatable, now)?;
            Some((
                index,
                Observation {
                    backend: self.clone(),
                    index,
                    permit: Some(permit),
                    began: now,
                },
            ))
        })
    }

    /// Ends ejections whose time is over, and compares the endpoints when an interval is.
    pub fn tick(&self, now: Instant) {
        let Some(outlier) = &self.spec.outlier else {
            return;
        };
        // Who is on probation stays out of the picks, and can be tried.
        let is_over = |endpoint: &Arc<EndpointState>| {
            endpoint.is_out() && endpoint.with_host(|host| host.tick(now))
        };
        if self
            .endpoints
            .iter()
            .filter(|endpoint| is_over(endpoint))
            .count()
            > 0
        {
            self.review();
        }
        let Some(half) = self.counters.ended_half(outlier.config.interval() / 2, now) else {
            return;
        };
        let (places, latencies) = self.of_those_in(|tier, host| (tier, host.end_half_interval()));
        let mut found: Vec<_> = outlier::by_latency(&outlier.config, &latencies)
            .into_iter()
            .map(|(place, cause)| (places[place], cause))
            .collect();
        if half.is_multiple_of(2) {
            let (places, records) = self.of_those_in(|_, host| host.end_interval());
            found.extend(
                outlier::by_results(&outlier.config, &records)
                    .into_iter()
                    .map(|(place, cause)| (places[place], cause)),
            );
        }
        for (index, cause) in found {
            if !self.endpoints[index].is_out() && !self.eject(outlier, index, cause, now) {
                return;
            }
        }
    }

    /// Asks something of all endpoints that are in: their places, and the answers.
    fn of_those_in<T>(&self, ask: impl Fn(usize, &mut Host) -> T) -> (Vec<usize>, Vec<T>) {
        let members = self
            .tiers()
            .flat_map(|(tier, members)| members.iter().map(move |index| (tier, *index)));
        let answers = members.filter_map(|(tier, index)| {
            let mut host = self.endpoints[index].host();
            (host.standing() == Standing::In).then(|| (index, ask(tier, &mut host)))
        });
        answers.unzip()
    }

    /// Ejects an endpoint if the backend can spare it.
    fn eject(&self, outlier: &OutlierSpec, index: usize, cause: Cause, now: Instant) -> bool {
        let total = self.endpoints.len();
        let out = || self.counters.out.load(Ordering::Relaxed);
        // Most who are refused are refused for the share: then there is no need to look at all others.
        if !outlier::may_eject(&outlier.config, total, out(), total) {
            return false;
        }
        let _turn = self
            .counters
            .ejecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_in =
            |index: usize| !self.endpoints[index].is_out() && !self.endpoints[index].is_retired();
        let available = (0..total)
            .filter(|index| is_in(*index) && self.is_healthy(*index))
            .count();
        if !is_in(index) || !outlier::may_eject(&outlier.config, total, out(), available) {
            return false;
        }
        let long = self.endpoints[index]
            .with_host(|host| host.eject(&outlier.config, cause, now, fastrand::f64()));
        self.ejected(outlier, index, cause, long);
        true
    }

    fn ejected(&self, outlier: &OutlierSpec, index: usize, cause: Cause, long: Duration) {
        let endpoint = self.endpoints[index].label.clone();
        self.telemetry.emit(Event::EndpointEjected {
            backend: self.spec.name.clone(),
            endpoint,
            cause,
            long,
            is_shadow: outlier.mode == Mode::Shadow,
        });
    }
}

impl Observation {
    /// Tells how the attempt went, how long its answer took, and how long the endpoint asked to be left alone.
    pub fn settle(
        mut self,
        result: Attempted,
        took: Duration,
        leave_alone: Option<Duration>,
        now: Instant,
    ) {
        let endpoint = &self.backend.endpoints[self.index];
        if self.backend.spec.balancer == Balancer::PeakEwma {
            match result {
                Attempted::Success => endpoint.latency().succeeded(took, now),
                Attempted::Throttled
                | Attempted::GatewayError
                | Attempted::ServerError
                | Attempted::LocalOrigin => endpoint.latency().failed(took, leave_alone, now),
                Attempted::Cancelled => endpoint.latency().waited(took, now),
            }
        }
        self.count(result, took, now);
    }

    /// Judges a probe by an answer that has begun well, though its end is still to come: it may be a stream that does not end for hours.
    pub fn has_begun(&mut self, took: Duration, now: Instant) {
        if self.permit.as_ref().is_some_and(HostPermit::is_probe) {
            self.count(Attempted::Success, took, now);
        }
    }

    fn count(&mut self, result: Attempted, took: Duration, now: Instant) {
        let (Some(permit), Some(outlier)) = (self.permit.take(), &self.backend.spec.outlier) else {
            return;
        };
        let endpoint = &self.backend.endpoints[self.index];
        let verdict = endpoint.with_host(|host| {
            host.settle(&outlier.config, &permit, result, took, now, fastrand::f64())
        });
        match verdict {
            Verdict::Stays => {}
            Verdict::Suspect(cause) => _ = self.backend.eject(outlier, self.index, cause, now),
            Verdict::Again(cause, long) => self.backend.ejected(outlier, self.index, cause, long),
            Verdict::Readmitted => {
                let is_shadow = !self.backend.ejects();
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

impl Drop for Observation {
    fn drop(&mut self) {
        // Nobody waited for it.
        self.count(Attempted::Cancelled, Duration::ZERO, self.began);
    }
}

//! Load of this instance in the last seconds, and a forecast without this instance.
//!
//! Before a drain the forecast tells an operator whether the other replicas can take over the
//! load. This module measures the load and counts the replicas. The forecast itself is computed
//! in [`crate::resilience::capacity`]. The module does not know the load of the other replicas.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    policy::document::Direction,
    resilience::capacity::ObservedLoad,
    state::{
        active_policy::ActivePolicy, instance::drain::DrainState,
        policies::concurrency_limit::ConcurrencyLimitState,
    },
};

/// Time for which load samples are retained.
const LOAD_WINDOW: Duration = Duration::from_secs(10);

/// Load samples of the last ten seconds.
#[derive(Debug, Default)]
pub struct LoadHistory {
    /// Samples from the oldest to the latest; the lock covers one read or write.
    samples: Mutex<VecDeque<LoadSample>>,
}

#[derive(Debug, Clone, Copy)]
struct LoadSample {
    at: Instant,
    /// Number of inbound requests since the start of the process.
    requests_started: u64,
    in_flight: u32,
    /// Highest utilization of an inbound concurrency limit; above 1 after the limit was
    /// lowered.
    max_utilization: f64,
}

impl LoadHistory {
    /// Adds a sample of the current load; called once per second.
    pub(in crate::state) fn record_load(
        &self,
        drain: &DrainState,
        active_policy: &ActivePolicy,
        now: Instant,
    ) {
        let limits = inbound_limits(active_policy).unwrap_or_default();
        self.record(take_sample(drain, &limits, now));
    }

    /// Returns the load of the last ten seconds, with the current load as its latest sample.
    pub(in crate::state) fn observe(
        &self,
        drain: &DrainState,
        active_policy: &ActivePolicy,
        now: Instant,
    ) -> ObservedLoad {
        let limits = inbound_limits(active_policy);
        let max_in_flight = limits.as_ref().map(|limits| {
            let max = limits.iter().map(|limit| limit.max);
            max.fold(0, u32::saturating_add)
        });
        let current = take_sample(drain, &limits.unwrap_or_default(), now);
        self.observed_load(current, max_in_flight)
    }

    /// Adds a sample, and removes samples older than [`LOAD_WINDOW`].
    fn record(&self, now: LoadSample) {
        let mut samples = self.samples.lock();
        samples.retain(|sample| now.at.saturating_duration_since(sample.at) <= LOAD_WINDOW);
        samples.push_back(now);
    }

    /// Returns the load of the window up to `current`. The sample `current` is not stored, so a
    /// call has no effect on later results.
    fn observed_load(&self, current: LoadSample, limit: Option<u32>) -> ObservedLoad {
        let samples = self.samples.lock();
        let recent = || {
            samples
                .iter()
                .copied()
                .filter(|sample| current.at.saturating_duration_since(sample.at) <= LOAD_WINDOW)
                .chain([current])
        };
        let in_flight = || recent().map(|sample| sample.in_flight);
        let count = u32::try_from(recent().count()).unwrap_or(u32::MAX);
        let rate = recent().next().map_or(0.0, |first| {
            let seconds = current.at.saturating_duration_since(first.at).as_secs_f64();
            #[expect(
                clippy::cast_precision_loss,
                reason = "requests of ten seconds are far below 2^52"
            )]
            let started = current
                .requests_started
                .saturating_sub(first.requests_started) as f64;
            if seconds > 0.0 {
                started / seconds
            } else {
                0.0
            }
        });
        ObservedLoad {
            peak_in_flight: in_flight().max().unwrap_or(0),
            mean_in_flight: in_flight().map(f64::from).sum::<f64>() / f64::from(count),
            requests_per_second: rate,
            limit,
            max_utilization: recent()
                .map(|sample| sample.max_utilization)
                .fold(0.0, f64::max),
        }
    }
}

/// Measures the load of the moment.
fn take_sample(drain: &DrainState, limits: &[LimitUsage], at: Instant) -> LoadSample {
    let in_flight = u32::try_from(drain.instance_load().inbound.in_flight).unwrap_or(u32::MAX);
    let max_utilization = limits
        .iter()
        .map(|limit| f64::from(limit.in_flight) / f64::from(limit.max))
        .fold(0.0, f64::max);
    LoadSample {
        at,
        requests_started: drain.inbound_requests_started(),
        in_flight,
        max_utilization,
    }
}

/// Usage of one inbound concurrency limit, in requests.
struct LimitUsage {
    in_flight: u32,
    max: u32,
}

/// Returns the usage of all inbound concurrency limits, or `None` if an inbound destination has
/// no limit.
fn inbound_limits(active_policy: &ActivePolicy) -> Option<Vec<LimitUsage>> {
    let inbound = active_policy
        .routes
        .iter()
        .filter(|route| route.spec.direction == Direction::Inbound)
        .flat_map(|route| &route.destinations);
    let limits: Option<Vec<_>> = inbound
        .map(|destination| destination.policy_states.concurrency_limit.as_ref())
        .collect();
    let mut limits = limits?;
    // Several destinations may share a limit, which counts once.
    limits.sort_by(|a, b| a.name().cmp(b.name()));
    limits.dedup_by(|a, b| a.name() == b.name());
    let to_usage = |limit: &ConcurrencyLimitState| {
        let snapshot = limit.snapshot();
        LimitUsage {
            in_flight: snapshot.in_flight,
            max: snapshot.config.max_in_flight.get(),
        }
    };
    (!limits.is_empty()).then(|| limits.into_iter().map(|limit| to_usage(limit)).collect())
}

#[cfg(test)]
mod tests;

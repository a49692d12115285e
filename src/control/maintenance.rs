//! Periodic maintenance of state that no request triggers.
//!
//! This module decides only how often each step runs. The steps themselves belong to the state
//! that they change.

use std::{sync::Arc, time::Duration};

use crate::{
    clock,
    control::health::readiness_gates,
    resilience::memory_pressure::MemoryLevel,
    state::{State, active_policy::ActivePolicy, instance::memory::MemoryBudget},
    telemetry::memory_measure::MemoryMeasure,
};

/// Interval of the maintenance loop.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two runs of the metrics maintenance. Histograms buffer samples until then or
/// until a scrape.
const METRICS_UPKEEP_TICKS: u64 = 5;

/// Ticks between two sweeps of rate limit keys. A sweep removes keys with full buckets, which
/// hold no information.
const KEY_SWEEP_TICKS: u64 = 10;

/// Interval of outlier sweeps while at least one backend has outlier detection.
const OUTLIER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Ends expired ejections and compares the endpoints of each backend. Never returns.
pub(super) async fn watch_outliers(state: Arc<State>) {
    loop {
        // Without outlier detection the longer interval keeps an idle sidecar asleep. A policy
        // that adds it takes effect within one second.
        let is_needed = state
            .active_policy
            .load()
            .backends
            .iter()
            .any(|backend| backend.spec.outlier_detection.is_some());
        clock::sleep(if is_needed {
            OUTLIER_CHECK_INTERVAL
        } else {
            TICK
        })
        .await;
        let now = clock::now();
        for backend in &state.active_policy.load().backends {
            backend.sweep_outliers(now);
        }
    }
}

/// Releases half of each cache of responses, because memory is short.
fn release_caches(memory: &MemoryBudget, active_policy: &ActivePolicy) {
    for cache in &active_policy.policy_states.stale_cache {
        if cache.evict_half() {
            memory.record(MemoryMeasure::ReleaseCache);
        }
    }
}

/// Returns memory to the system at once while memory is short. Never returns.
pub(super) async fn return_memory(state: Arc<State>) {
    state.memory.return_pages_under_pressure().await;
}

/// Runs all maintenance steps once per second, some of them less often. Never returns.
pub(super) async fn run_maintenance(state: Arc<State>) {
    let mut memory_level = MemoryLevel::Normal;
    for second in 0_u64.. {
        clock::sleep(TICK).await;
        memory_level = state.memory.report_level(memory_level);
        let now = clock::now();
        let active_policy = state.active_policy.load();
        if memory_level > MemoryLevel::Normal {
            release_caches(&state.memory, &active_policy);
        }
        state
            .lifecycle
            .instance_age
            .stop_advertising(active_policy.snapshot.lifecycle.warm_up.as_ref(), now);
        state.record_load(now);
        readiness_gates::update_conditions(&state);
        for breaker in &active_policy.breakers {
            breaker.end_expired_half_open(now, fastrand::f64());
        }
        if second % METRICS_UPKEEP_TICKS == 0 {
            state.telemetry.metrics.run_maintenance();
        }
        if second % KEY_SWEEP_TICKS == 0 {
            active_policy
                .routes
                .iter()
                .flat_map(|route| &route.rate_limits)
                .for_each(|limit| limit.sweep(now));
        }
    }
}

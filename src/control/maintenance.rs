//! What has to be done every second, whatever else happens.

use std::{sync::Arc, time::Duration};

use crate::{
    clock,
    control::health::readiness_gates,
    state::{State, instance::capacity},
};

const TICK: Duration = Duration::from_secs(1);

/// Histograms collect until they are emptied.
const METRICS_UPKEEP_TICKS: u64 = 5;

/// Keys whose buckets are full again are forgotten.
const KEY_SWEEP_TICKS: u64 = 10;

/// How often ejections are looked at, where there are any.
const OUTLIER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Ends ejections whose time is over, and compares endpoints.
pub(super) async fn watch_outliers(state: Arc<State>) {
    loop {
        // An idle sidecar wakes up rarely; a policy that begins to eject is noticed within a second.
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

/// Does it.
pub(super) async fn run_maintenance(state: Arc<State>) {
    for second in 0_u64.. {
        clock::sleep(TICK).await;
        let now = clock::now();
        let active_policy = state.active_policy.load();
        state
            .lifecycle
            .instance_age
            .stop_advertising(active_policy.snapshot.lifecycle.warm_up.as_ref(), now);
        capacity::record_load(&state, now);
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

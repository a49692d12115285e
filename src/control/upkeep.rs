//! What has to be done every second, whatever else happens.

use std::{sync::Arc, time::Duration};

use super::gates;
use crate::{
    clock,
    state::{State, capacity},
};

const TICK: Duration = Duration::from_secs(1);

/// Histograms collect until they are emptied.
const METRICS_EVERY: u64 = 5;

/// Keys whose buckets are full again are forgotten.
const KEYS_EVERY: u64 = 10;

/// How often ejections are looked at, where there are any.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ends ejections whose time is over, and compares endpoints.
pub(super) async fn watch_outliers(state: Arc<State>) {
    loop {
        // An idle sidecar wakes up rarely; a policy that begins to eject is noticed within a second.
        let is_needed = state
            .live
            .load()
            .backends
            .iter()
            .any(|backend| backend.spec.outlier.is_some());
        clock::sleep(if is_needed { LOOK_EVERY } else { TICK }).await;
        let now = clock::now();
        for backend in &state.live.load().backends {
            backend.tick(now);
        }
    }
}

/// Does it.
pub(super) async fn upkeep(state: Arc<State>) {
    for second in 0_u64.. {
        clock::sleep(TICK).await;
        let now = clock::now();
        let live = state.live.load();
        state
            .lifecycle
            .youth
            .grow_up(live.snapshot.lifecycle.warm_up.as_ref(), now);
        capacity::feel(&state, now);
        gates::look(&state);
        for breaker in &live.breakers {
            breaker.tick(now, fastrand::f64());
        }
        if second % METRICS_EVERY == 0 {
            state.telemetry.metrics.upkeep();
        }
        if second % KEYS_EVERY == 0 {
            live.routes
                .iter()
                .flat_map(|route| &route.rate_limits)
                .for_each(|limit| limit.sweep(now));
        }
    }
}

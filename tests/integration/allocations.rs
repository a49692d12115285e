//! A decision that lets a request pass allocates nothing: memory is no reason for one to be late.
//!
//! Not counted are the metrics: the histograms of `metrics-exporter-prometheus` take a block of 1 KiB for every 64 durations.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger::{
    policy::{
        self,
        snapshot::Snapshot,
        source::{File, Source},
    },
    resilience::{
        breaker::{Outcome, Speed},
        outlier::Attempted,
        shed::Class,
    },
    state::{State, admission::Verdict, backend::Wish, breaker::Passage, limit::Entry},
    telemetry::{Telemetry, access_log::AccessLog},
};

use crate::support::sidecar::policy;

const EVERYTHING: &str = "  defaults:
    circuitBreaker: {consecutiveFailures: 5}
    connectionLimits: {maxParallelRequests: 100, adaptive: {}}
    admissionControl: {}
    retryConstraint: {}
    hedging: {}
    rateLimit: {local: {rules: [{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1000000, unit: Second}}]}}
  protection: {}
";

fn live() -> Arc<State> {
    let endpoints =
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|address| address.parse().unwrap());
    let text = policy(&endpoints, EVERYTHING)
        .replace("]}\n  routes", "], outlierDetection: {}}\n  routes");
    let source = Source::from_files(vec![File {
        name: "test.yaml".into(),
        text,
    }]);
    let snapshot: Snapshot = policy::load_source(&source, &HashMap::new())
        .unwrap()
        .snapshot;
    let (state, _wishes) = State::new(
        Arc::new(Telemetry::new(AccessLog::off(), SystemTime::now)),
        None,
        Instant::now(),
    );
    state.apply(Arc::new(snapshot), Instant::now());
    state
}

/// Every decision that a request meets which is let in, asked and answered well, with what is told about it after.
fn decide(state: &State, key: u64, now: Instant) {
    let live = state.live.load();
    let route = &live.routes[0];
    let to = &route.destinations[0];
    assert!(!state.protection.refuses(Class::Normal, || 0.5));
    assert_eq!(
        to.admission.as_ref().unwrap().ask(0.5, now),
        Verdict::Admitted
    );
    assert!(route.rate_limits[0].try_acquire(Some(key), now).is_ok());
    let Entry::Admitted(place) = to.limit.as_ref().unwrap().enter(Class::Normal) else {
        panic!("there is room")
    };
    to.budget.deposit(now);
    let _how_late = to.hedge.as_ref().unwrap().delay(now);
    let index = to
        .backend
        .pick(Wish { key: None, now }, |_| true, || 0.5)
        .unwrap();
    let in_flight = to.backend.endpoints[index].enter();
    let Passage::Allowed(permit) = to.breaker.as_ref().unwrap().try_acquire(now, 0.5) else {
        panic!("it is closed")
    };
    let observation = to.backend.observe(index, now).unwrap();
    let took = Duration::from_millis(2);
    permit.settle(Outcome::Success, Speed::Fast, now, 0.5);
    to.admission.as_ref().unwrap().note(true, now);
    observation.settle(Attempted::Success, took, None, now);
    to.hedge.as_ref().unwrap().note(took, now);
    place.learner().unwrap().note(took, false, now);
    drop((place, in_flight));
}

#[test]
fn a_decision_that_lets_a_request_pass_allocates_nothing() {
    let (state, start) = (live(), Instant::now());
    // What is made once, at the first request of a kind or of a key, is not part of it.
    (0..2_000).for_each(|call| decide(&state, call % 1_000, start + Duration::from_millis(call)));
    let counted = allocation_counter::measure(|| {
        (0..1_000)
            .for_each(|call| decide(&state, call, start + Duration::from_millis(2_000 + call)))
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn the_counter_counts() {
    assert!(allocation_counter::measure(|| drop(Box::new(7))).count_total >= 1);
}

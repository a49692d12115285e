//! The decisions that admit a request allocate no memory.
//!
//! Metrics are excluded: the histograms of `metrics-exporter-prometheus` allocate a block of 1 KiB
//! for every 64 durations.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger::{
    policy::{self, snapshot::PolicySnapshot, source::PolicySource},
    resilience::{
        breaker::{CallOutcome, Speed},
        outlier::EndpointResult,
        shed::PriorityClass,
    },
    state::{
        State, instance::memory::MemoryBudget, policies::admission_control::AdmissionDecision,
        policies::breaker::BreakerDecision, policies::concurrency_limit::AcquireOutcome,
        topology::backend::selection::SelectionRequest,
    },
    telemetry::{Telemetry, access_log::AccessLogWriter},
};

use crate::support::policy::PolicyBuilder;

const ALL_POLICY_SECTIONS: &str = "  defaults:
    circuitBreaker: {consecutiveFailures: 5}
    connectionLimits: {maxParallelRequests: 100, adaptive: {}}
    admissionControl: {}
    retryConstraint: {}
    hedging: {}
    rateLimit:
      local:
        rules:
          - name: each
            clientSelectors: [{headers: [{name: x-key, type: Distinct}]}]
            limit: {requests: 1000000, unit: Second}
  protection: {}
";

fn new_state() -> Arc<State> {
    let endpoints =
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|address| address.parse().unwrap());
    let policy = PolicyBuilder::new(&endpoints)
        .backend_fields("outlierDetection: {}")
        .sections(ALL_POLICY_SECTIONS);
    let source = PolicySource::from_text("test.yaml", policy.build());
    let snapshot: PolicySnapshot = policy::load_source(&source, &HashMap::new())
        .unwrap()
        .snapshot;
    let telemetry = Arc::new(Telemetry::new(AccessLogWriter::disabled(), SystemTime::now));
    let (state, _commands) = State::new(
        telemetry.clone(),
        MemoryBudget::new(u64::MAX, 1, telemetry),
        None,
        Instant::now(),
    );
    state.apply(Arc::new(snapshot), Instant::now());
    state
}

/// Takes every decision of an admitted request, and records its successful result.
fn admit_and_complete_request(state: &State, key: u64, now: Instant) {
    let active_policy = state.active_policy.load();
    let route = &active_policy.routes[0];
    let destination = &route.destinations[0];
    let policies = &destination.policy_states;
    let admission_control = policies.admission_control.as_ref().unwrap();
    let hedge = policies.hedge.as_ref().unwrap();
    assert!(!state.protection.should_shed(PriorityClass::Normal, || 0.5));
    assert_eq!(
        admission_control.decide(0.5, now),
        AdmissionDecision::Admitted
    );
    assert!(route.rate_limits[0].try_acquire(Some(key), now).is_ok());
    let AcquireOutcome::Admitted(limit_permit) = policies
        .concurrency_limit
        .as_ref()
        .unwrap()
        .try_acquire(PriorityClass::Normal)
    else {
        panic!("the concurrency limit rejects the request")
    };
    destination.retry_budget.deposit(now);
    let _hedging_delay = hedge.delay(now);
    let index = destination
        .backend
        .pick(
            SelectionRequest {
                hash_key: None,
                now,
            },
            |_| true,
            || 0.5,
        )
        .unwrap();
    let in_flight = destination.backend.endpoints[index].start_request();
    let BreakerDecision::Admitted(permit) =
        destination.breaker.as_ref().unwrap().try_acquire(now, 0.5)
    else {
        panic!("the breaker rejects the request")
    };
    let observation = destination.backend.observe_attempt(index, now).unwrap();
    let latency = Duration::from_millis(2);
    permit.settle(CallOutcome::Success, Speed::Fast, now, 0.5);
    admission_control.record_result(true, now);
    observation.settle(EndpointResult::Success, latency, None, now);
    hedge.record_latency(latency, now);
    limit_permit
        .sampler()
        .unwrap()
        .record_sample(latency, false, now);
    drop((limit_permit, in_flight));
}

#[test]
fn admitting_and_completing_a_request_allocates_nothing() {
    let (state, start) = (new_state(), Instant::now());
    // The first request of a kind or key may allocate.
    (0..2_000).for_each(|call| {
        admit_and_complete_request(&state, call % 1_000, start + Duration::from_millis(call))
    });
    let allocations = allocation_counter::measure(|| {
        (0..1_000).for_each(|call| {
            admit_and_complete_request(&state, call, start + Duration::from_millis(2_000 + call))
        })
    });
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
}

#[test]
fn the_allocation_counter_detects_an_allocation() {
    assert!(allocation_counter::measure(|| drop(Box::new(7))).count_total >= 1);
}

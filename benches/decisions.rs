//! How many nanoseconds does each decision take, compared with a naive method?
//!
//! Run `cargo bench --bench decisions`. `benches/README.md` has the measured table.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a benchmark"
)]

use std::{
    collections::{HashMap, VecDeque},
    hint::black_box,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::{
    message::headers::Headers,
    policy::{
        self, matching::RouteMatchInput, sections::rate_limit::spec::RateLimitRuleSpec,
        snapshot::PolicySnapshot, source::PolicySource,
    },
    resilience::{
        Mode,
        adaptive::{AdaptiveConfig, LimitAlgorithm},
        admission::AdmissionConfig,
        backoff::Backoff,
        breaker::{BreakerConfig, BreakerThresholds, BreakerTimes, CallOutcome, Speed},
        concurrency::ConcurrencyConfig,
        hedge::HedgeConfig,
        ratio::Ratio,
        retry::{FailureKind, RetryConfig, RetryContext, RetryTriggers},
        retry_budget::RetryBudgetConfig,
        shed::PriorityClass,
    },
    state::{
        State,
        instance::{memory::MemoryBudget, protection::ProtectionState},
        policies::admission_control::AdmissionState,
        policies::breaker::{BreakerDecision, BreakerState},
        policies::concurrency_limit::{AcquireOutcome, ConcurrencyLimitState},
        policies::hedge::HedgeState,
        policies::rate_limit::RateLimitState,
        policies::retry_budget::RetryBudgetState,
        policies::stale::{CachedResponse, StaleLookup, StaleState},
        topology::backend::selection::SelectionRequest,
    },
    telemetry::{Telemetry, access_log::AccessLogWriter},
};

fn breaker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("breaker");
    let half = Some(Ratio::from_percent(50.0).unwrap());
    let twenty = NonZeroU32::new(20).unwrap();
    let thresholds = BreakerThresholds {
        consecutive_failures: NonZeroU32::new(5),
        failure_rate: half,
        slow_call_rate: half,
        minimum_calls: twenty,
    };
    let seconds = Duration::from_secs;
    let times = BreakerTimes {
        window: seconds(10),
        open_duration: seconds(5),
        max_open_duration: seconds(60),
        max_half_open_duration: seconds(30),
        recovery_ramp: seconds(10),
    };
    let config = BreakerConfig::try_new(thresholds, times, twenty).unwrap();
    let telemetry = Arc::new(Telemetry::new(AccessLogWriter::disabled(), SystemTime::now));
    let state = Arc::new(BreakerState::new(
        "app".into(),
        config,
        Mode::Enforce,
        telemetry,
        Instant::now(),
    ));
    let now = Instant::now();
    group.bench_function("acquire a permit and settle it", |bench| {
        bench.iter(|| {
            if let BreakerDecision::Admitted(guard) = state.try_acquire(black_box(now), 0.5) {
                guard.settle(CallOutcome::Success, Speed::Fast, now, 0.5);
            }
        });
    });
    // A list with every result of the window, counted for each decision.
    let results: Mutex<VecDeque<(Instant, bool)>> =
        Mutex::new((0..1_000).map(|_| (now, true)).collect());
    group.bench_function("naive: a list of the 1000 results in the window", |bench| {
        bench.iter(|| {
            let mut results = results.lock().unwrap();
            results.pop_front();
            results.push_back((black_box(now), true));
            results
                .iter()
                .filter(|(at, is_success)| {
                    now.saturating_duration_since(*at) < Duration::from_secs(10) && !is_success
                })
                .count()
                * 2
                > results.len()
        });
    });
    group.finish();
}

fn rate_limit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rate limit");
    let now = Instant::now();
    for keys in [1_u64, 100, 10_000, 100_000] {
        let state = RateLimitState::new("in/per-key".into(), keyed_rule(), now, now);
        assert!((0..keys).all(|key| {
            state
                .try_acquire(Some(key.wrapping_mul(0x9E37_79B9_7F4A_7C15)), now)
                .is_ok()
        }));
        let mut key = 0;
        group.bench_function(format!("one of {keys} keys"), |bench| {
            bench.iter(|| {
                key = (key + 1) % keys;
                state
                    .try_acquire(
                        Some(black_box(key.wrapping_mul(0x9E37_79B9_7F4A_7C15))),
                        now,
                    )
                    .is_ok()
            });
        });
    }
    let naive: Mutex<HashMap<String, (f64, Instant)>> = Mutex::new(
        (0..10_000)
            .map(|key| (key.to_string(), (1e9, now)))
            .collect(),
    );
    let mut key = 0;
    group.bench_function("naive: a map of strings, 10 000 keys", |bench| {
        bench.iter(|| {
            key = (key + 1) % 10_000;
            let mut buckets = naive.lock().unwrap();
            let (tokens, last) = buckets.entry(key.to_string()).or_insert((1e9, now));
            *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f64() * 100.0)
                .min(1e9)
                - 1.0;
            *last = now;
            *tokens >= 0.0
        });
    });
    group.finish();
}

fn keyed_rule() -> RateLimitRuleSpec {
    let text = policy_text(
        "endpoints: [\"127.0.0.1:1\"]",
        "    - name: in
      listeners: [inbound]
      backendRefs: [{name: app}]
      rateLimit:
        maxKeys: 200000
        local:
          rules:
            - name: per-key
              clientSelectors: [{headers: [{name: x, type: Distinct}]}]
              limit: {requests: 1000000000, unit: Second}
",
    );
    let snapshot = compile_policy(&policy_source(text));
    snapshot.routes[0].rate_limits.rules[0].clone()
}

/// Returns a policy with the listener `inbound`, the backend `app` and these routes.
fn policy_text(backend_fields: &str, routes: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: bench}}\n\
         spec:\n  listeners: [{{name: inbound, direction: Inbound, address: \"127.0.0.1:0\"}}]\n  \
         backends: [{{name: app, {backend_fields}}}]\n  routes:\n{routes}"
    )
}

fn policy_source(text: String) -> PolicySource {
    PolicySource::from_text("bench.yaml", text)
}

fn compile_policy(source: &PolicySource) -> PolicySnapshot {
    policy::load_source(source, &HashMap::new())
        .unwrap()
        .snapshot
}

fn concurrency_limit_and_retry_budget(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("concurrency limit and retry budget");
    let limit = Arc::new(ConcurrencyLimitState::new(
        "app".into(),
        ConcurrencyConfig {
            max_in_flight: NonZeroU32::MAX,
            max_pending: 0,
        },
        Mode::Enforce,
        None,
        now,
    ));
    group.bench_function("acquire a permit and release it", |bench| {
        bench.iter(|| drop(black_box(limit.try_acquire(PriorityClass::Critical))))
    });
    let budget = Arc::new(RetryBudgetState::new(
        "app".into(),
        RetryBudgetConfig::default(),
        now,
    ));
    group.bench_function("retry budget: count a request", |bench| {
        bench.iter(|| budget.deposit(black_box(now)))
    });
    group.finish();
}

fn admission_control(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("admission control");
    let config = AdmissionConfig {
        window: Duration::from_secs(30),
        min_success_rate: Ratio::from_percent(95.0).unwrap(),
        aggression: 1.0,
        min_request_rate: 5,
        max_rejection: Ratio::from_percent(80.0).unwrap(),
    };
    let admission = AdmissionState::new("app".into(), config, Mode::Enforce, now);
    group.bench_function("decide, and record the result", |bench| {
        bench.iter(|| {
            let decision = admission.decide(0.5, black_box(now));
            admission.record_result(true, now);
            decision
        });
    });
    group.finish();
}

fn hedging(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("hedging");
    let hedge = HedgeState::new(
        HedgeConfig {
            max_attempts: NonZeroU32::MIN,
            delay: None,
        },
        now,
    );
    (0..1_000).for_each(|call| hedge.record_latency(Duration::from_micros(1_000 + call), now));
    group.bench_function("compute the delay, and record the latency", |bench| {
        bench.iter(|| {
            hedge.record_latency(Duration::from_millis(2), black_box(now));
            hedge.delay(now)
        });
    });
    let latencies: Mutex<VecDeque<Duration>> = Mutex::new(
        (0..1_000)
            .map(|call| Duration::from_micros(1_000 + call))
            .collect(),
    );
    group.bench_function("naive: sort the last 1000 latencies", |bench| {
        bench.iter(|| {
            let mut latencies = latencies.lock().unwrap();
            latencies.pop_front();
            latencies.push_back(black_box(Duration::from_millis(2)));
            let mut sorted: Vec<Duration> = latencies.iter().copied().collect();
            sorted.sort_unstable();
            sorted[950]
        });
    });
    group.finish();
}

fn adaptive_limit(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("adaptive limit");
    let config = AdaptiveConfig {
        algorithm: LimitAlgorithm::Gradient2,
        min_limit: 4,
        max_limit: 1_000,
    };
    let adaptive = Arc::new(ConcurrencyLimitState::new(
        "app".into(),
        ConcurrencyConfig {
            max_in_flight: NonZeroU32::MAX,
            max_pending: 0,
        },
        Mode::Enforce,
        Some((config, Mode::Enforce)),
        now,
    ));
    group.bench_function(
        "acquire a permit, record a sample and release it",
        |bench| {
            bench.iter(|| {
                if let AcquireOutcome::Admitted(permit) =
                    adaptive.try_acquire(PriorityClass::Critical)
                {
                    permit.sampler().unwrap().record_sample(
                        Duration::from_millis(2),
                        false,
                        black_box(now),
                    );
                }
            });
        },
    );
    group.finish();
}

fn protection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("protection");
    let state = ProtectionState::default();
    group.bench_function("decide whether a class is shed", |bench| {
        bench.iter(|| state.should_shed(black_box(PriorityClass::Normal), || 0.5))
    });
    group.finish();
}

fn cached_responses(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("cached responses");
    for count in [100_usize, 100_000] {
        let cache = StaleState::new("app".into(), usize::MAX);
        let keys: Vec<String> = (0..count)
            .map(|number| format!("in shop.local /items/{number}"))
            .collect();
        for key in &keys {
            let cached_response = CachedResponse {
                headers: Headers::default(),
                body: Bytes::new(),
                received_at: now,
                expires_at: now + Duration::from_secs(3_600),
                initial_age: Duration::ZERO,
                is_public: true,
                forwarding_key: "in".into(),
                vary: Vec::new(),
            };
            cache.store(key, cached_response);
        }
        let (request, mut next) = (Headers::default(), 0);
        group.bench_function(format!("find one of {count}"), |bench| {
            bench.iter(|| {
                next = (next + 7_919) % count;
                cache.find(
                    StaleLookup {
                        cache_key: black_box(&keys[next]),
                        forwarding_key: "in",
                        headers: &request,
                    },
                    Duration::from_secs(3_600),
                    now,
                )
            });
        });
    }
    group.finish();
}

fn retry(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("retry");
    let config = RetryConfig {
        attempts: 2,
        triggers: RetryTriggers {
            connect_failure: true,
            refused_stream: true,
            reset_before_request: true,
            reset: false,
            timeout: false,
        },
        backoff: Backoff::try_new(Duration::from_millis(25), Duration::from_millis(250)).unwrap(),
        retry_non_idempotent: false,
        respect_retry_after: true,
    };
    let context = RetryContext {
        failure: FailureKind::Status { retry_after: None },
        is_idempotent: true,
        is_body_replayable: true,
        is_retried_by_downstream: false,
        retries: 0,
        transparent_retries: 0,
        time_left: Duration::from_secs(10),
    };
    group.bench_function("decide whether and when", |bench| {
        bench.iter(|| config.decide(black_box(&context), 0.5))
    });
    group.finish();
}

/// Selects an endpoint of 3, of 100 and of 10 000.
fn endpoint_selection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("endpoint selection");
    for endpoints in [3_usize, 100, 10_000] {
        for balancer in [
            "LeastRequest",
            "PeakEwma",
            "RoundRobin",
            "Random",
            "ConsistentHash, consistentHash: {type: SourceIP}",
        ] {
            let state = new_state(&format!("type: {balancer}"), endpoints);
            let backend = state.active_policy.load().backends[0].clone();
            let selection_request = SelectionRequest {
                hash_key: Some(0x1234_5678_9abc_def0),
                now: Instant::now(),
            };
            let name = balancer.split(',').next().unwrap();
            group.bench_function(format!("{name} of {endpoints}"), |bench| {
                bench.iter(|| backend.pick(black_box(selection_request), |_| true, fastrand::f64))
            });
        }
        let state = new_state("type: LeastRequest, slowStart: {window: 10m}", endpoints);
        let backend = state.active_policy.load().backends[0].clone();
        let selection_request = SelectionRequest {
            hash_key: None,
            now: Instant::now(),
        };
        backend
            .endpoints
            .iter()
            .for_each(|endpoint| endpoint.warm_up_from(selection_request.now));
        group.bench_function(
            format!("LeastRequest, all warming up, of {endpoints}"),
            |bench| {
                bench.iter(|| backend.pick(black_box(selection_request), |_| true, fastrand::f64))
            },
        );
        let load: Vec<f64> = (0..endpoints)
            .map(|index| f64::from(u32::try_from(index % 7).unwrap()))
            .collect();
        group.bench_function(
            format!("naive: the minimum over all {endpoints}"),
            |bench| {
                bench.iter(|| (0..endpoints).min_by(|a, b| load[*a].total_cmp(&load[*b])));
            },
        );
    }
    group.finish();
}

fn new_state(balancer: &str, endpoints: usize) -> Arc<State> {
    let addresses: Vec<String> = (0..endpoints)
        .map(|number| format!("\"10.0.{}.{}:80\"", number / 256, number % 256))
        .collect();
    let text = policy_text(
        &format!(
            "endpoints: [{}], loadBalancer: {{{balancer}}}",
            addresses.join(", ")
        ),
        "    - {name: in, listeners: [inbound], backendRefs: [{name: app}]}\n",
    );
    let snapshot = compile_policy(&policy_source(text));
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

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    for count in [2, 20, 200, 2_000, 10_000] {
        let routes: String = (0..count)
            .map(|number| {
                format!(
                    "    - {{name: r{number}, listeners: [inbound], hostnames: [h{number}.shop], \
                     matches: [{{path: {{value: /v1}}}}], backendRefs: [{{name: app}}]}}\n"
                )
            })
            .collect();
        let source = policy_source(policy_text("endpoints: [\"127.0.0.1:1\"]", &routes));
        let snapshot = compile_policy(&source);
        // The names sort as text, so this one is late in the order.
        let host = format!("h{}.shop", count - 1);
        let request = RouteMatchInput {
            host: &host,
            path: "/v1/items",
            method: "GET",
            header: &|_| None,
        };
        group.bench_function(format!("one of {count}"), |bench| {
            bench.iter(|| snapshot.route_tables[0].find(black_box(&request)))
        });
        group.bench_function(format!("scan of {count}"), |bench| {
            let rules = snapshot.route_tables[0].rules();
            bench.iter(|| rules.iter().find(|rule| rule.matches(black_box(&request))))
        });
        group.bench_function(format!("compile a set of {count}"), |bench| {
            bench.iter(|| policy::load_source(black_box(&source), &HashMap::new()).unwrap())
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets =
        breaker,
        rate_limit,
        concurrency_limit_and_retry_budget,
        admission_control,
        hedging,
        adaptive_limit,
        protection,
        cached_responses,
        retry,
        endpoint_selection,
        routing
}
criterion_main!(benches);

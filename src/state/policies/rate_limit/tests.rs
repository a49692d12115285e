//! Tests of the guarantees of token buckets.

use std::num::NonZeroU64;

use crate::{
    policy::sections::rate_limit::spec::{QuotaSpec, RateWarmUpSpec, SelectorSpec},
    resilience::{Mode, some_instant},
    state::policies::rate_limit::*,
};

fn rule(requests: u32, unit_seconds: u64, burst: u32) -> RateLimitRuleSpec {
    let quota = QuotaSpec {
        requests: NonZeroU32::new(requests).expect("a rate"),
        unit_seconds: NonZeroU64::new(unit_seconds).expect("a unit"),
        burst: NonZeroU32::new(burst).expect("a burst"),
    };
    RateLimitRuleSpec {
        name: Arc::from("all"),
        mode: Mode::Enforce,
        is_global: false,
        selectors: Vec::new(),
        quota,
        cost: 1,
        response_cost_header: None,
        max_wait: Duration::ZERO,
        warm_up: None,
        policy_header: None,
        max_keys: 10_000,
    }
}

/// Returns the number of admitted requests in ten minutes at ten times the rate. The random
/// steps are no multiple of the refill time.
fn admitted_in_ten_minutes(rule: &RateLimitRuleSpec) -> u64 {
    let start = some_instant();
    let state = RateLimitState::new(rule.name.clone(), rule.clone(), start, start);
    let step = rule.quota.emission_interval() / 10;
    let mut admitted = 0;
    let mut at = Duration::ZERO;
    let mut random_state = 1_u64;
    while at < Duration::from_mins(10) {
        random_state = random_state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        at += step.mul_f64((random_state >> 33) as f64 / f64::from(1_u32 << 31) * 2.0);
        admitted += u64::from(state.try_acquire(None, start + at).is_ok());
    }
    admitted
}

#[test]
fn admitted_requests_stay_within_one_percent_of_the_limit_under_overload() {
    let waits = [0, 200].map(Duration::from_millis);
    for (requests, unit_seconds, burst) in [
        (100, 1, 100),
        (100, 1, 1),
        (7, 1, 7),
        (3_000, 60, 20),
        (1_000, 1, 50),
    ] {
        let limit = 600.0 * f64::from(requests) / unit_seconds as f64;
        // A full bucket of one token loses what refills before the next request. The rate is
        // reached only if requests may wait.
        for max_wait in waits.into_iter().skip(usize::from(burst == 1)) {
            let admitted = admitted_in_ten_minutes(&RateLimitRuleSpec {
                max_wait,
                ..rule(requests, unit_seconds, burst)
            }) as f64;
            assert!(
                (admitted / limit - 1.0).abs() <= 0.01,
                "{requests} in {unit_seconds} s, bursts of {burst}, waiting {max_wait:?}: \
                 {admitted} of {limit}"
            );
        }
    }
}

#[test]
fn distinct_keys_are_bounded_by_max_keys() {
    let start = some_instant();
    let rule = RateLimitRuleSpec {
        max_keys: 100_000,
        selectors: vec![header_selector()],
        ..rule(1, 3_600, 2)
    };
    let state = RateLimitState::new(rule.name.clone(), rule, start, start);
    let key = |number: u64| Some(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let admitted = (0..400_000)
        .filter(|number| state.try_acquire(key(*number), start).is_ok())
        .count();
    let usage = state.usage();
    assert!((99_000..=100_000).contains(&usage.keys), "{usage:?}");
    assert_eq!(usage.overflowed_requests, 400_000 - usage.keys as u64);
    assert_eq!(admitted, usage.keys + 2, "all others share two tokens");
    // A known key keeps its own bucket while the store is full.
    assert!(state.try_acquire(key(0), start).is_ok() && state.try_acquire(key(0), start).is_err());
    let later = start + Duration::from_hours(3);
    state.sweep(later);
    assert_eq!(state.usage().keys, 0, "full buckets are forgotten");
}

fn header_selector() -> SelectorSpec {
    let header = (http::HeaderName::from_static("x-key"), None);
    SelectorSpec {
        headers: vec![header],
        path: None,
        methods: Vec::new(),
        source_cidr: None,
        identity: None,
    }
}

#[test]
fn a_small_max_keys_is_used_in_full() {
    let start = some_instant();
    for max_keys in [1, 31, 100, 1_500] {
        let rule = RateLimitRuleSpec {
            max_keys,
            selectors: vec![header_selector()],
            ..rule(1, 3_600, 1)
        };
        let state = RateLimitState::new(rule.name.clone(), rule, start, start);
        let admitted = (0..max_keys as u64)
            .filter(|number| {
                state
                    .try_acquire(Some(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)), start)
                    .is_ok()
            })
            .count();
        assert_eq!((admitted, state.usage().overflowed_requests), (max_keys, 0));
    }
}

#[test]
fn instances_that_share_a_limit_admit_as_much_as_one() {
    for instances in [1_u32, 3, 7] {
        let rule = rule(700, 1, 700);
        let start = some_instant();
        let states: Vec<_> = (0..instances)
            .map(|_| RateLimitState::new(rule.name.clone(), rule.clone(), start, start))
            .collect();
        states
            .iter()
            .for_each(|state| state.set_instances(instances));
        let mut admitted = 0;
        for step in 0..60_000_u64 {
            let now = start + Duration::from_millis(step);
            admitted += states
                .iter()
                .map(|state| {
                    (0..2)
                        .filter(|_| state.try_acquire(None, now).is_ok())
                        .count()
                })
                .sum::<usize>();
        }
        assert!(
            (42_000..=42_800).contains(&admitted),
            "{instances}: {admitted} of 42000 and a burst of 700"
        );
    }
}

#[test]
fn retry_after_is_never_too_short() {
    let start = some_instant();
    for rule in [
        rule(7, 1, 3),
        RateLimitRuleSpec {
            max_wait: Duration::from_millis(1),
            ..rule(7, 1, 3)
        },
        rule(1, 60, 1),
    ] {
        let state = RateLimitState::new(rule.name.clone(), rule.clone(), start, start);
        let mut now = start;
        for _ in 0..100 {
            match state.try_acquire(None, now) {
                Ok(granted) => now += granted.wait,
                Err(limited) => {
                    assert!(
                        state
                            .try_acquire(None, now + limited.retry_after - Duration::from_millis(2))
                            .is_err(),
                        "{rule:?}"
                    );
                    now += limited.retry_after;
                    assert!(
                        state.try_acquire(None, now).is_ok(),
                        "{rule:?}: {limited:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_changed_rule_retains_fill_debt_and_warm_up() {
    let start = some_instant();
    let warm_up = Some(RateWarmUpSpec {
        window: Duration::from_secs(10),
        cold_factor: 3,
    });
    let old = RateLimitRuleSpec {
        warm_up,
        ..rule(10, 1, 10)
    };
    let state = RateLimitState::new(old.name.clone(), old.clone(), start, start);
    while state.try_acquire(None, start).is_ok() {}
    let changed = RateLimitRuleSpec {
        max_wait: Duration::from_millis(1),
        ..old.clone()
    };
    assert!(
        state
            .reconfigured(changed.clone(), start)
            .try_acquire(None, start)
            .is_err(),
        "empty as it was"
    );
    // Applies full load for longer than the warm-up window.
    let mut now = start;
    for _ in 0..3_000 {
        now += Duration::from_millis(10);
        _ = state.try_acquire(None, now);
    }
    let admitted_in_a_second = |state: &RateLimitState| {
        (1..=100)
            .filter(|step| {
                state
                    .try_acquire(None, now + Duration::from_millis(10 * step))
                    .is_ok()
            })
            .count()
    };
    assert!(
        (9..=11).contains(&admitted_in_a_second(&state.reconfigured(changed, now))),
        "as warm as it was"
    );
    let cold = RateLimitRuleSpec {
        warm_up: Some(RateWarmUpSpec {
            window: Duration::from_secs(20),
            cold_factor: 3,
        }),
        ..old
    };
    assert!(
        admitted_in_a_second(&state.reconfigured(cold, now)) < 8,
        "another warm-up begins cold"
    );
}

use super::*;
use crate::resilience::some_instant;

use std::num::NonZeroU32;

const MIDDLE: f64 = 0.5; // no jitter

fn n(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("not zero")
}

fn percent(value: f64) -> Option<Ratio> {
    Some(Ratio::from_percent(value).expect("a percentage"))
}

fn thresholds() -> BreakerThresholds {
    BreakerThresholds {
        consecutive_failures: Some(n(3)),
        failure_rate: percent(50.0),
        slow_call_rate: percent(80.0),
        minimum_calls: n(10),
    }
}

fn times() -> BreakerTimes {
    BreakerTimes {
        window: Duration::from_secs(10),
        open: Duration::from_secs(5),
        max_open: Duration::from_secs(60),
        max_half_open: Duration::from_secs(30),
        recovery_ramp: Duration::ZERO,
    }
}

fn config() -> BreakerConfig {
    BreakerConfig::try_new(thresholds(), times(), n(4)).expect("sound")
}

/// A breaker on a clock that the test turns.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(config: BreakerConfig) -> Self {
        let now = some_instant();
        Self {
            breaker: Breaker::new(config, now),
            now,
        }
    }

    fn in_state(config: BreakerConfig, state: StateKind) -> Self {
        let mut bench = Self::new(config);
        match state {
            Closed => {}
            Open | HalfOpen => {
                for _ in 0..3 {
                    bench.call(Failure);
                }
                if state == HalfOpen {
                    bench.wait(5_001);
                    let probe = bench.acquire().expect("the first probe");
                    bench.settle(&probe, Cancelled);
                }
            }
            ForcedOpen => drop(bench.breaker.force_open(bench.now)),
            Disabled => drop(bench.breaker.disable(bench.now)),
        }
        assert_eq!(bench.breaker.kind(), state);
        bench
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn acquire(&mut self) -> Result<Permit, Rejected> {
        self.breaker.try_acquire(self.now, MIDDLE).0
    }

    fn settle(&mut self, permit: &Permit, outcome: Outcome) -> Option<Transition> {
        self.breaker
            .settle(permit, outcome, Speed::Fast, self.now, MIDDLE)
    }

    fn call(&mut self, outcome: Outcome) -> StateKind {
        if let Ok(permit) = self.acquire() {
            self.settle(&permit, outcome);
        }
        self.breaker.kind()
    }

    fn call_of(&mut self, duration: Duration) {
        let permit = self.acquire().expect("closed");
        self.breaker.settle(
            &permit,
            Success,
            Speed::of(duration, Duration::from_secs(1)),
            self.now,
            MIDDLE,
        );
    }
}

use Outcome::{Cancelled, Failure, Success, Throttled};
use StateKind::{Closed, Disabled, ForcedOpen, HalfOpen, Open};

/// Every state and every input: whether a call passes, and where one result leads.
#[test]
fn each_state_answers_each_input() {
    let table = [
        (Closed, Success, true, Closed),
        (Closed, Failure, true, Closed),
        (Closed, Throttled, true, Closed),
        (Closed, Cancelled, true, Closed),
        (Open, Success, false, Open),
        (Open, Failure, false, Open),
        (Open, Throttled, false, Open),
        (Open, Cancelled, false, Open),
        (HalfOpen, Success, true, HalfOpen),
        (HalfOpen, Failure, true, HalfOpen),
        (HalfOpen, Throttled, true, HalfOpen),
        (HalfOpen, Cancelled, true, HalfOpen),
        (ForcedOpen, Success, false, ForcedOpen),
        (ForcedOpen, Failure, false, ForcedOpen),
        (ForcedOpen, Throttled, false, ForcedOpen),
        (ForcedOpen, Cancelled, false, ForcedOpen),
        (Disabled, Success, true, Disabled),
        (Disabled, Failure, true, Disabled),
        (Disabled, Throttled, true, Disabled),
        (Disabled, Cancelled, true, Disabled),
    ];
    for (state, outcome, passes, then) in table {
        let mut bench = Bench::in_state(config(), state);
        assert_eq!(bench.acquire().is_ok(), passes, "{state:?}");
        let mut bench = Bench::in_state(config(), state);
        assert_eq!(bench.call(outcome), then, "{state:?} {outcome:?}");
    }
}

#[test]
fn by_hand_every_state_is_reached_from_every_state() {
    for from in [Closed, Open, HalfOpen, ForcedOpen, Disabled] {
        let mut bench = Bench::in_state(config(), from);
        let told = bench.breaker.force_open(bench.now);
        assert_eq!(
            (bench.breaker.kind(), told.is_some()),
            (ForcedOpen, from != ForcedOpen)
        );
        let mut bench = Bench::in_state(config(), from);
        let told = bench.breaker.disable(bench.now);
        assert_eq!(
            (bench.breaker.kind(), told.is_some()),
            (Disabled, from != Disabled)
        );
        let mut bench = Bench::in_state(config(), from);
        let told = bench.breaker.reset(bench.now);
        assert_eq!(
            (bench.breaker.kind(), told.is_some()),
            (Closed, from != Closed)
        );
    }
}

#[test]
fn resuming_ends_what_was_set_by_hand_and_nothing_else() {
    for (from, then) in [
        (Closed, Closed),
        (Open, Open),
        (HalfOpen, HalfOpen),
        (ForcedOpen, Closed),
        (Disabled, Closed),
    ] {
        let mut bench = Bench::in_state(config(), from);
        let told = bench.breaker.resume(bench.now);
        assert_eq!((bench.breaker.kind(), told.is_some()), (then, from != then));
    }
}

#[test]
fn a_run_of_failures_trips_at_the_threshold_and_not_before() {
    let mut bench = Bench::new(config());
    assert_eq!(
        [
            bench.call(Failure),
            bench.call(Failure),
            bench.call(Failure)
        ],
        [Closed, Closed, Open]
    );
}

#[test]
fn one_success_ends_a_run_and_a_throttled_call_does_not_extend_it() {
    let mut bench = Bench::new(config());
    for outcome in [Failure, Failure, Success, Failure, Throttled, Failure] {
        assert_eq!(bench.call(outcome), Closed, "{outcome:?}");
    }
    assert_eq!(bench.call(Failure), Open);
}

fn rates_only() -> BreakerConfig {
    BreakerConfig::try_new(
        BreakerThresholds {
            consecutive_failures: None,
            ..thresholds()
        },
        times(),
        n(4),
    )
    .expect("sound")
}

#[test]
fn a_failure_rate_trips_at_the_threshold_and_only_after_the_minimum() {
    let mut bench = Bench::new(rates_only());
    for _ in 0..9 {
        assert_eq!(bench.call(Failure), Closed, "below the minimum of calls");
    }
    assert_eq!(bench.call(Failure), Open);

    let mut bench = Bench::new(rates_only());
    for _ in 0..6 {
        bench.call(Success);
    }
    for _ in 0..5 {
        assert_eq!(bench.call(Throttled), Closed, "below half");
    }
    assert_eq!(bench.call(Throttled), Open, "exactly half");
}

#[test]
fn a_call_is_slow_only_when_it_takes_longer_than_the_threshold() {
    let mut bench = Bench::new(rates_only());
    for _ in 0..20 {
        bench.call_of(Duration::from_secs(1));
    }
    assert_eq!(bench.breaker.kind(), Closed);
    let mut bench = Bench::new(rates_only());
    for _ in 0..10 {
        bench.call_of(Duration::from_millis(1_001));
    }
    assert_eq!(bench.breaker.kind(), Open);
}

#[test]
fn failures_that_left_the_window_no_longer_count() {
    let mut bench = Bench::new(rates_only());
    for _ in 0..9 {
        bench.call(Failure);
    }
    bench.wait(10_000);
    assert_eq!(bench.call(Failure), Closed);
}

#[test]
fn an_open_breaker_probes_strictly_after_its_open_time() {
    let mut bench = Bench::in_state(config(), Open);
    bench.wait(5_000);
    assert_eq!(
        bench.acquire(),
        Err(Rejected {
            state: Open,
            retry_after: Some(Duration::ZERO)
        })
    );
    bench.wait(1);
    assert!(bench.acquire().is_ok());
    assert_eq!(bench.breaker.kind(), HalfOpen);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let mut bench = Bench::in_state(config(), Open);
    bench.wait(2_000);
    assert_eq!(
        bench.acquire(),
        Err(Rejected {
            state: Open,
            retry_after: Some(Duration::from_secs(3))
        })
    );
    assert_eq!(bench.breaker.snapshot(bench.now).refused, 1);
}

#[test]
fn half_open_admits_at_most_the_configured_calls() {
    let mut bench = Bench::in_state(config(), HalfOpen);
    let probes: Vec<_> = (0..4).map(|_| bench.acquire().expect("a probe")).collect();
    assert!(bench.acquire().is_err());
    assert_eq!(bench.settle(&probes[0], Success), None);
    assert!(
        bench.acquire().is_err(),
        "a judged probe does not make room for another"
    );
}

#[test]
fn half_open_closes_when_all_probes_passed() {
    let mut bench = Bench::in_state(config(), HalfOpen);
    assert_eq!(
        [
            bench.call(Success),
            bench.call(Success),
            bench.call(Failure)
        ],
        [HalfOpen; 3],
        "one of four is below half"
    );
    assert_eq!(bench.call(Success), Closed);
}

#[test]
fn half_open_opens_as_soon_as_no_probe_could_change_it() {
    let mut bench = Bench::in_state(config(), HalfOpen);
    assert_eq!(bench.call(Failure), HalfOpen);
    assert_eq!(bench.call(Throttled), Open, "two of four");
}

#[test]
fn without_a_rate_one_failed_probe_is_too_many() {
    let thresholds = BreakerThresholds {
        failure_rate: None,
        slow_call_rate: None,
        ..thresholds()
    };
    let config = BreakerConfig::try_new(thresholds, times(), n(4)).expect("sound");
    let mut bench = Bench::in_state(config, HalfOpen);
    assert_eq!(bench.call(Failure), Open);
}

#[test]
fn a_cancelled_probe_gives_its_permit_back() {
    let mut bench = Bench::in_state(config(), HalfOpen);
    for _ in 0..100 {
        let probe = bench.acquire().expect("the permit came back");
        bench.settle(&probe, Cancelled);
    }
    for _ in 0..4 {
        bench.call(Success);
    }
    assert_eq!(bench.breaker.kind(), Closed);
}

#[test]
fn a_late_result_moves_nothing() {
    let mut bench = Bench::new(config());
    let early: Vec<_> = (0..8).map(|_| bench.acquire().expect("closed")).collect();
    for permit in &early[..3] {
        bench.settle(permit, Failure);
    }
    assert_eq!(bench.breaker.kind(), Open);
    bench.settle(&early[3], Success);
    assert_eq!(bench.breaker.kind(), Open, "a success from before the trip");
    bench.wait(5_001);
    let probe = bench.acquire().expect("a probe");
    bench.settle(&early[4], Failure);
    bench.settle(&early[5], Failure);
    assert_eq!(
        bench.breaker.kind(),
        HalfOpen,
        "failures from before the trip do not judge the probes"
    );
    bench.settle(&probe, Success);
    assert_eq!(bench.breaker.snapshot(bench.now).late_results, 3);
}

#[test]
fn a_half_open_round_that_is_not_judged_opens_again() {
    let mut bench = Bench::in_state(config(), HalfOpen);
    let _probe = bench.acquire().expect("a probe that never ends");
    bench.wait(30_000);
    assert_eq!(bench.breaker.tick(bench.now, MIDDLE), None);
    bench.wait(1);
    let told = bench.breaker.tick(bench.now, MIDDLE).expect("a transition");
    assert_eq!(
        (told.from, told.to, told.cause),
        (HalfOpen, Open, Cause::ProbesTimedOut)
    );
}

#[test]
fn the_open_time_doubles_with_each_failed_round_up_to_the_cap() {
    let mut bench = Bench::in_state(config(), Open);
    let mut open_seconds = Vec::new();
    for _ in 0..6 {
        let until = bench.breaker.next_deadline().expect("open");
        open_seconds.push((until - bench.now).as_secs());
        bench.now = until + Duration::from_millis(1);
        bench.call(Failure);
        bench.call(Failure);
    }
    assert_eq!(open_seconds, [5, 10, 20, 40, 60, 60]);
}

#[test]
fn closing_forgets_the_failed_rounds() {
    let mut bench = Bench::in_state(config(), Open);
    bench.wait(5_001);
    bench.call(Failure);
    bench.call(Failure);
    bench.wait(10_001);
    for _ in 0..4 {
        bench.call(Success);
    }
    assert_eq!(bench.breaker.kind(), Closed);
    for _ in 0..3 {
        bench.call(Failure);
    }
    assert_eq!(
        bench.breaker.next_deadline(),
        Some(bench.now + Duration::from_secs(5))
    );
}

#[test]
fn the_open_time_is_jittered_by_a_fifth() {
    for (random, millis) in [(0.0, 4_000), (0.5, 5_000), (1.0, 6_000)] {
        let mut bench = Bench::new(config());
        for _ in 0..3 {
            let permit = bench.acquire().expect("closed");
            bench
                .breaker
                .settle(&permit, Failure, Speed::Fast, bench.now, random);
        }
        assert_eq!(
            bench.breaker.next_deadline(),
            Some(bench.now + Duration::from_millis(millis))
        );
    }
}

#[test]
fn after_closing_a_rising_share_is_admitted() {
    let times = BreakerTimes {
        recovery_ramp: Duration::from_secs(10),
        ..times()
    };
    let config = BreakerConfig::try_new(thresholds(), times, n(1)).expect("sound");
    let mut bench = Bench::in_state(config, Open);
    bench.wait(5_001);
    assert_eq!(bench.call(Success), Closed);
    let mut admitted = Vec::new();
    for _ in 0..10 {
        let mut passed = 0;
        for _ in 0..100 {
            bench.wait(10);
            passed += u32::from(bench.acquire().is_ok());
        }
        admitted.push(passed);
    }
    assert!(admitted.is_sorted(), "{admitted:?}");
    assert!(admitted[0] <= 7 && admitted[9] >= 93, "{admitted:?}");
    bench.wait(1_000);
    assert!((0..100).all(|_| bench.acquire().is_ok()));
}

#[test]
fn a_changed_configuration_keeps_state_and_counts() {
    let mut bench = Bench::in_state(config(), Open);
    let wider = BreakerThresholds {
        consecutive_failures: Some(n(100)),
        ..thresholds()
    };
    bench.breaker.reconfigure(
        BreakerConfig::try_new(wider, times(), n(2)).expect("sound"),
        bench.now,
    );
    assert_eq!(bench.breaker.kind(), Open);
    assert_eq!(bench.breaker.snapshot(bench.now).counts.failures, 3);
}

#[test]
fn senseless_configurations_are_refused() {
    let nothing = BreakerThresholds {
        consecutive_failures: None,
        failure_rate: None,
        slow_call_rate: None,
        ..thresholds()
    };
    let zero_rate = BreakerThresholds {
        failure_rate: Some(Ratio::ZERO),
        ..thresholds()
    };
    let cases = [
        (nothing, times(), InvalidBreaker::NothingTrips),
        (zero_rate, times(), InvalidBreaker::RateOfNothing),
        (
            thresholds(),
            BreakerTimes {
                window: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::NoWindow,
        ),
        (
            thresholds(),
            BreakerTimes {
                open: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::NoOpenTime,
        ),
        (
            thresholds(),
            BreakerTimes {
                max_open: Duration::from_secs(4),
                ..times()
            },
            InvalidBreaker::MaxOpenBelowOpen,
        ),
        (
            thresholds(),
            BreakerTimes {
                max_half_open: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::NoHalfOpenTime,
        ),
    ];
    for (thresholds, times, expected) in cases {
        assert_eq!(
            BreakerConfig::try_new(thresholds, times, n(1)),
            Err(expected)
        );
    }
}

/// Against a naive model that keeps every result: closed trips exactly when the model says so.
#[test]
fn closed_trips_exactly_when_a_list_of_all_results_says_so() {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..200 {
        let mut bench = Bench::new(config());
        let start = bench.now;
        let mut results: Vec<(u64, Outcome)> = Vec::new();
        let mut run = 0;
        let failing_percent = draw(80);
        for _ in 0..200 {
            bench.wait(draw(400));
            let outcome = match draw(100) {
                x if x < failing_percent / 2 => Failure,
                x if x < failing_percent => Throttled,
                x if x > 97 => Cancelled,
                _ => Success,
            };
            let bucket = u64::try_from((bench.now - start).as_millis() / 1_000).expect("small");
            match outcome {
                Cancelled => {}
                Failure => run += 1,
                Throttled => {}
                Success => run = 0,
            }
            if outcome != Cancelled {
                results.push((bucket, outcome));
            }
            let recent = || results.iter().filter(|(at, _)| *at + 9 >= bucket);
            let (total, failed) = (
                recent().count(),
                recent().filter(|(_, outcome)| *outcome != Success).count(),
            );
            let trips = outcome != Cancelled && (run >= 3 || (total >= 10 && failed * 2 >= total));
            assert_eq!(
                bench.call(outcome) == Open,
                trips,
                "round {round}: run {run}, {failed} of {total}"
            );
            if trips {
                break;
            }
        }
    }
}

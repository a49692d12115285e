use std::num::NonZeroU32;

use crate::resilience::{breaker::*, some_instant};

pub(super) const NO_JITTER: f64 = 0.5;

pub(super) fn non_zero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("not zero")
}

fn percent(value: f64) -> Option<Ratio> {
    Some(Ratio::from_percent(value).expect("a percentage"))
}

pub(super) fn thresholds() -> BreakerThresholds {
    BreakerThresholds {
        consecutive_failures: Some(non_zero(3)),
        failure_rate: percent(50.0),
        slow_call_rate: percent(80.0),
        minimum_calls: non_zero(10),
    }
}

pub(super) fn times() -> BreakerTimes {
    BreakerTimes {
        window: Duration::from_secs(10),
        open_duration: Duration::from_secs(5),
        max_open_duration: Duration::from_secs(60),
        max_half_open_duration: Duration::from_secs(30),
        recovery_ramp: Duration::ZERO,
    }
}

pub(super) fn config() -> BreakerConfig {
    BreakerConfig::try_new(thresholds(), times(), non_zero(4)).expect("sound")
}

fn fast_call(outcome: CallOutcome) -> CallResult {
    CallResult {
        outcome,
        speed: Speed::Fast,
    }
}

/// A breaker with a clock that the test advances.
pub(super) struct BreakerFixture {
    pub(super) breaker: Breaker,
    pub(super) now: Instant,
}

impl BreakerFixture {
    pub(super) fn new(config: BreakerConfig) -> Self {
        let now = some_instant();
        Self {
            breaker: Breaker::new(config, now),
            now,
        }
    }

    pub(super) fn in_state(config: BreakerConfig, state: StateKind) -> Self {
        let mut fixture = Self::new(config);
        match state {
            Closed => {}
            Open | HalfOpen => {
                for _ in 0..3 {
                    fixture.call(Failure);
                }
                if state == HalfOpen {
                    fixture.advance_clock(5_001);
                    let probe = fixture.acquire().expect("the first probe");
                    fixture.settle(&probe, Cancelled);
                }
            }
            ForcedOpen => drop(fixture.breaker.force_open(fixture.now)),
            Disabled => drop(fixture.breaker.disable(fixture.now)),
        }
        assert_eq!(fixture.breaker.state_kind(), state);
        fixture
    }

    pub(super) fn advance_clock(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    pub(super) fn acquire(&mut self) -> Result<Permit, Rejected> {
        self.breaker.try_acquire(self.now, NO_JITTER).0
    }

    pub(super) fn settle(&mut self, permit: &Permit, outcome: CallOutcome) -> Option<Transition> {
        self.breaker
            .settle(permit, fast_call(outcome), self.now, NO_JITTER)
    }

    pub(super) fn call(&mut self, outcome: CallOutcome) -> StateKind {
        if let Ok(permit) = self.acquire() {
            self.settle(&permit, outcome);
        }
        self.breaker.state_kind()
    }

    pub(super) fn call_lasting(&mut self, duration: Duration) {
        let permit = self.acquire().expect("closed");
        self.breaker.settle(
            &permit,
            CallResult {
                outcome: Success,
                speed: Speed::from_duration(duration, Duration::from_secs(1)),
            },
            self.now,
            NO_JITTER,
        );
    }
}

use CallOutcome::{Cancelled, Failure, Success, Throttled};
use StateKind::{Closed, Disabled, ForcedOpen, HalfOpen, Open};

/// Covers every state and every outcome: whether a call is admitted, and which state its result
/// leads to.
#[test]
fn each_state_handles_each_outcome() {
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
        let mut fixture = BreakerFixture::in_state(config(), state);
        assert_eq!(fixture.acquire().is_ok(), passes, "{state:?}");
        let mut fixture = BreakerFixture::in_state(config(), state);
        assert_eq!(fixture.call(outcome), then, "{state:?} {outcome:?}");
    }
}

#[test]
fn manual_actions_reach_their_state_from_every_state() {
    for from in [Closed, Open, HalfOpen, ForcedOpen, Disabled] {
        let mut fixture = BreakerFixture::in_state(config(), from);
        let transition = fixture.breaker.force_open(fixture.now);
        assert_eq!(
            (fixture.breaker.state_kind(), transition.is_some()),
            (ForcedOpen, from != ForcedOpen)
        );
        let mut fixture = BreakerFixture::in_state(config(), from);
        let transition = fixture.breaker.disable(fixture.now);
        assert_eq!(
            (fixture.breaker.state_kind(), transition.is_some()),
            (Disabled, from != Disabled)
        );
        let mut fixture = BreakerFixture::in_state(config(), from);
        let transition = fixture.breaker.reset(fixture.now);
        assert_eq!(
            (fixture.breaker.state_kind(), transition.is_some()),
            (Closed, from != Closed)
        );
    }
}

#[test]
fn clear_override_ends_only_forced_open_and_disabled() {
    for (from, then) in [
        (Closed, Closed),
        (Open, Open),
        (HalfOpen, HalfOpen),
        (ForcedOpen, Closed),
        (Disabled, Closed),
    ] {
        let mut fixture = BreakerFixture::in_state(config(), from);
        let transition = fixture.breaker.clear_override(fixture.now);
        assert_eq!(
            (fixture.breaker.state_kind(), transition.is_some()),
            (then, from != then)
        );
    }
}

#[test]
fn a_run_of_failures_trips_at_the_threshold_and_not_before() {
    let mut fixture = BreakerFixture::new(config());
    assert_eq!(
        [
            fixture.call(Failure),
            fixture.call(Failure),
            fixture.call(Failure)
        ],
        [Closed, Closed, Open]
    );
}

#[test]
fn one_success_ends_a_run_and_a_throttled_call_does_not_extend_it() {
    let mut fixture = BreakerFixture::new(config());
    for outcome in [Failure, Failure, Success, Failure, Throttled, Failure] {
        assert_eq!(fixture.call(outcome), Closed, "{outcome:?}");
    }
    assert_eq!(fixture.call(Failure), Open);
}

fn rates_only_config() -> BreakerConfig {
    BreakerConfig::try_new(
        BreakerThresholds {
            consecutive_failures: None,
            ..thresholds()
        },
        times(),
        non_zero(4),
    )
    .expect("sound")
}

#[test]
fn a_failure_rate_trips_at_the_threshold_and_only_after_the_minimum() {
    let mut fixture = BreakerFixture::new(rates_only_config());
    for _ in 0..9 {
        assert_eq!(fixture.call(Failure), Closed, "below the minimum of calls");
    }
    assert_eq!(fixture.call(Failure), Open);

    let mut fixture = BreakerFixture::new(rates_only_config());
    for _ in 0..6 {
        fixture.call(Success);
    }
    for _ in 0..5 {
        assert_eq!(fixture.call(Throttled), Closed, "below half");
    }
    assert_eq!(fixture.call(Throttled), Open, "exactly half");
}

#[test]
fn a_call_is_slow_only_when_it_takes_longer_than_the_threshold() {
    let mut fixture = BreakerFixture::new(rates_only_config());
    for _ in 0..20 {
        fixture.call_lasting(Duration::from_secs(1));
    }
    assert_eq!(fixture.breaker.state_kind(), Closed);
    let mut fixture = BreakerFixture::new(rates_only_config());
    for _ in 0..10 {
        fixture.call_lasting(Duration::from_millis(1_001));
    }
    assert_eq!(fixture.breaker.state_kind(), Open);
}

#[test]
fn failures_that_left_the_window_no_longer_count() {
    let mut fixture = BreakerFixture::new(rates_only_config());
    for _ in 0..9 {
        fixture.call(Failure);
    }
    fixture.advance_clock(10_000);
    assert_eq!(fixture.call(Failure), Closed);
}

#[test]
fn an_open_breaker_probes_strictly_after_its_open_time() {
    let mut fixture = BreakerFixture::in_state(config(), Open);
    fixture.advance_clock(5_000);
    assert_eq!(
        fixture.acquire(),
        Err(Rejected {
            state: Open,
            retry_after: Some(Duration::ZERO)
        })
    );
    fixture.advance_clock(1);
    assert!(fixture.acquire().is_ok());
    assert_eq!(fixture.breaker.state_kind(), HalfOpen);
}

#[test]
fn a_rejection_carries_retry_after() {
    let mut fixture = BreakerFixture::in_state(config(), Open);
    fixture.advance_clock(2_000);
    assert_eq!(
        fixture.acquire(),
        Err(Rejected {
            state: Open,
            retry_after: Some(Duration::from_secs(3))
        })
    );
    assert_eq!(fixture.breaker.snapshot(fixture.now).rejected_calls, 1);
}

#[test]
fn a_late_result_changes_no_state() {
    let mut fixture = BreakerFixture::new(config());
    let early: Vec<_> = (0..8).map(|_| fixture.acquire().expect("closed")).collect();
    for permit in &early[..3] {
        fixture.settle(permit, Failure);
    }
    assert_eq!(fixture.breaker.state_kind(), Open);
    fixture.settle(&early[3], Success);
    assert_eq!(
        fixture.breaker.state_kind(),
        Open,
        "a success from before the trip"
    );
    fixture.advance_clock(5_001);
    let probe = fixture.acquire().expect("a probe");
    fixture.settle(&early[4], Failure);
    fixture.settle(&early[5], Failure);
    assert_eq!(
        fixture.breaker.state_kind(),
        HalfOpen,
        "failures from before the trip do not judge the probes"
    );
    fixture.settle(&probe, Success);
    assert_eq!(fixture.breaker.snapshot(fixture.now).late_results, 3);
}

#[test]
fn the_open_time_doubles_with_each_failed_round_up_to_the_cap() {
    let mut fixture = BreakerFixture::in_state(config(), Open);
    let mut open_seconds = Vec::new();
    for _ in 0..6 {
        let until = fixture.breaker.next_deadline().expect("open");
        open_seconds.push((until - fixture.now).as_secs());
        fixture.now = until + Duration::from_millis(1);
        fixture.call(Failure);
        fixture.call(Failure);
    }
    assert_eq!(open_seconds, [5, 10, 20, 40, 60, 60]);
}

#[test]
fn closing_clears_the_failed_rounds() {
    let mut fixture = BreakerFixture::in_state(config(), Open);
    fixture.advance_clock(5_001);
    fixture.call(Failure);
    fixture.call(Failure);
    fixture.advance_clock(10_001);
    for _ in 0..4 {
        fixture.call(Success);
    }
    assert_eq!(fixture.breaker.state_kind(), Closed);
    for _ in 0..3 {
        fixture.call(Failure);
    }
    assert_eq!(
        fixture.breaker.next_deadline(),
        Some(fixture.now + Duration::from_secs(5))
    );
}

#[test]
fn the_open_time_is_jittered_by_a_fifth() {
    for (random, millis) in [(0.0, 4_000), (0.5, 5_000), (1.0, 6_000)] {
        let mut fixture = BreakerFixture::new(config());
        for _ in 0..3 {
            let permit = fixture.acquire().expect("closed");
            fixture
                .breaker
                .settle(&permit, fast_call(Failure), fixture.now, random);
        }
        assert_eq!(
            fixture.breaker.next_deadline(),
            Some(fixture.now + Duration::from_millis(millis))
        );
    }
}

#[test]
fn after_closing_a_rising_share_is_admitted() {
    let times = BreakerTimes {
        recovery_ramp: Duration::from_secs(10),
        ..times()
    };
    let config = BreakerConfig::try_new(thresholds(), times, non_zero(1)).expect("sound");
    let mut fixture = BreakerFixture::in_state(config, Open);
    fixture.advance_clock(5_001);
    assert_eq!(fixture.call(Success), Closed);
    let mut admitted = Vec::new();
    for _ in 0..10 {
        let mut passed = 0;
        for _ in 0..100 {
            fixture.advance_clock(10);
            passed += u32::from(fixture.acquire().is_ok());
        }
        admitted.push(passed);
    }
    assert!(admitted.is_sorted(), "{admitted:?}");
    assert!(admitted[0] <= 7 && admitted[9] >= 93, "{admitted:?}");
    fixture.advance_clock(1_000);
    assert!((0..100).all(|_| fixture.acquire().is_ok()));
}

#[test]
fn a_changed_configuration_keeps_state_and_counts() {
    let mut fixture = BreakerFixture::in_state(config(), Open);
    let wider = BreakerThresholds {
        consecutive_failures: Some(non_zero(100)),
        ..thresholds()
    };
    fixture.breaker.reconfigure(
        BreakerConfig::try_new(wider, times(), non_zero(2)).expect("sound"),
        fixture.now,
    );
    assert_eq!(fixture.breaker.state_kind(), Open);
    assert_eq!(fixture.breaker.snapshot(fixture.now).counts.failures, 3);
}

/// Compares a closed breaker with a naive model that keeps every result: both trip at the same
/// result.
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
        let mut fixture = BreakerFixture::new(config());
        let start = fixture.now;
        let mut results: Vec<(u64, CallOutcome)> = Vec::new();
        let mut run = 0;
        let failing_percent = draw(80);
        for _ in 0..200 {
            fixture.advance_clock(draw(400));
            let outcome = match draw(100) {
                x if x < failing_percent / 2 => Failure,
                x if x < failing_percent => Throttled,
                x if x > 97 => Cancelled,
                _ => Success,
            };
            let bucket = u64::try_from((fixture.now - start).as_millis() / 1_000).expect("small");
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
                fixture.call(outcome) == Open,
                trips,
                "round {round}: run {run}, {failed} of {total}"
            );
            if trips {
                break;
            }
        }
    }
}

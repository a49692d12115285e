use crate::resilience::breaker::{
    CallOutcome::{Cancelled, Failure, Success, Throttled},
    StateKind::{Closed, HalfOpen, Open},
    tests::*,
    *,
};

#[test]
fn half_open_admits_at_most_the_configured_calls() {
    let mut fixture = BreakerFixture::in_state(config(), HalfOpen);
    let probes: Vec<_> = (0..4)
        .map(|_| fixture.acquire().expect("a probe"))
        .collect();
    assert!(fixture.acquire().is_err());
    assert_eq!(fixture.settle(&probes[0], Success), None);
    assert!(
        fixture.acquire().is_err(),
        "a judged probe does not make room for another"
    );
}

#[test]
fn half_open_closes_when_all_probes_passed() {
    let mut fixture = BreakerFixture::in_state(config(), HalfOpen);
    assert_eq!(
        [
            fixture.call(Success),
            fixture.call(Success),
            fixture.call(Failure)
        ],
        [HalfOpen; 3],
        "one of four is below half"
    );
    assert_eq!(fixture.call(Success), Closed);
}

#[test]
fn half_open_reopens_as_soon_as_the_verdict_is_certain() {
    let mut fixture = BreakerFixture::in_state(config(), HalfOpen);
    assert_eq!(fixture.call(Failure), HalfOpen);
    assert_eq!(fixture.call(Throttled), Open, "two of four");
}

#[test]
fn without_a_failure_rate_threshold_one_failed_probe_reopens() {
    let thresholds = BreakerThresholds {
        failure_rate: None,
        slow_call_rate: None,
        ..thresholds()
    };
    let config = BreakerConfig::try_new(thresholds, times(), non_zero(4)).expect("sound");
    let mut fixture = BreakerFixture::in_state(config, HalfOpen);
    assert_eq!(fixture.call(Failure), Open);
}

#[test]
fn a_cancelled_probe_releases_its_permit() {
    let mut fixture = BreakerFixture::in_state(config(), HalfOpen);
    for _ in 0..100 {
        let probe = fixture.acquire().expect("the permit came back");
        fixture.settle(&probe, Cancelled);
    }
    for _ in 0..4 {
        fixture.call(Success);
    }
    assert_eq!(fixture.breaker.state_kind(), Closed);
}

#[test]
fn a_half_open_round_that_times_out_reopens() {
    let mut fixture = BreakerFixture::in_state(config(), HalfOpen);
    let _probe = fixture.acquire().expect("a probe that never ends");
    fixture.advance_clock(30_000);
    assert_eq!(
        fixture
            .breaker
            .end_expired_half_open(fixture.now, NO_JITTER),
        None
    );
    fixture.advance_clock(1);
    let transition = fixture
        .breaker
        .end_expired_half_open(fixture.now, NO_JITTER)
        .expect("a transition");
    assert_eq!(
        (transition.from, transition.to, transition.cause),
        (HalfOpen, Open, TransitionCause::ProbesTimedOut)
    );
}

use super::*;

fn config() -> RetryConfig {
    RetryConfig {
        attempts: 2,
        triggers: RetryTriggers {
            connect_failure: true,
            refused_stream: true,
            reset_before_request: true,
            reset: true,
            timeout: true,
        },
        backoff: Backoff::try_new(Duration::from_millis(100), Duration::from_secs(1))
            .expect("sound"),
        retry_non_idempotent: false,
        respect_retry_after: true,
    }
}

fn situation(failure: Failure) -> Situation {
    Situation {
        failure,
        is_idempotent: true,
        is_body_replayable: true,
        is_retry: false,
        retries: 0,
        transparent_retries: 0,
        time_left: Duration::from_secs(10),
    }
}

const STATUS: Failure = Failure::Status { retry_after: None };

fn retry(wait_millis: u64, is_transparent: bool) -> Verdict {
    Verdict::Retry {
        wait: Duration::from_millis(wait_millis),
        is_transparent,
    }
}

/// Every failure, for a method that may be repeated and for one that may not.
#[test]
fn a_request_that_may_have_run_is_repeated_only_if_it_is_idempotent() {
    use Failure::*;
    let never = Verdict::Stop(StopReason::NotIdempotent);
    let table = [
        (ConnectFailure, retry(50, true), retry(50, true)),
        (ResetBeforeRequest, retry(50, true), retry(50, true)),
        (Refused, retry(50, true), retry(50, true)),
        (Reset, retry(50, false), never),
        (PerTryTimeout, retry(50, false), never),
        (STATUS, retry(50, false), never),
        (
            Declined { retry_after: None },
            retry(50, false),
            retry(50, false),
        ),
        (
            Final,
            Verdict::Stop(StopReason::NotTriggered),
            Verdict::Stop(StopReason::NotTriggered),
        ),
    ];
    for (failure, idempotent, other) in table {
        assert_eq!(
            config().decide(&situation(failure), 0.5),
            idempotent,
            "{failure:?}, idempotent"
        );
        let situation = Situation {
            is_idempotent: false,
            ..situation(failure)
        };
        assert_eq!(
            config().decide(&situation, 0.5),
            other,
            "{failure:?}, not idempotent"
        );
    }
}

#[test]
fn a_policy_may_allow_methods_that_are_not_idempotent() {
    let config = RetryConfig {
        retry_non_idempotent: true,
        ..config()
    };
    let situation = Situation {
        is_idempotent: false,
        ..situation(STATUS)
    };
    assert_eq!(config.decide(&situation, 0.5), retry(50, false));
}

#[test]
fn a_failure_without_its_trigger_is_not_repeated() {
    use Failure::*;
    let triggers = RetryTriggers {
        connect_failure: false,
        refused_stream: false,
        reset_before_request: false,
        reset: false,
        timeout: false,
    };
    let config = RetryConfig {
        triggers,
        ..config()
    };
    for failure in [
        ConnectFailure,
        ResetBeforeRequest,
        Refused,
        Reset,
        PerTryTimeout,
    ] {
        assert_eq!(
            config.decide(&situation(failure), 0.5),
            Verdict::Stop(StopReason::NotTriggered),
            "{failure:?}"
        );
    }
}

#[test]
fn attempts_are_bounded_and_transparent_ones_apart() {
    let used = Situation {
        retries: 2,
        ..situation(STATUS)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        Verdict::Stop(StopReason::AttemptsExhausted)
    );
    let used = Situation {
        retries: 2,
        transparent_retries: 1,
        ..situation(Failure::ConnectFailure)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        retry(100, true),
        "the second transparent one"
    );
    let used = Situation {
        transparent_retries: 2,
        ..situation(Failure::ConnectFailure)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        Verdict::Stop(StopReason::AttemptsExhausted)
    );
}

#[test]
fn what_the_proxy_before_repeats_is_repeated_only_if_it_never_reached_the_app() {
    use Failure::*;
    for failure in [Reset, PerTryTimeout, STATUS, Declined { retry_after: None }] {
        let situation = Situation {
            is_retry: true,
            ..situation(failure)
        };
        assert_eq!(
            config().decide(&situation, 0.5),
            Verdict::Stop(StopReason::AlreadyRetried),
            "{failure:?}"
        );
    }
    for failure in [ConnectFailure, ResetBeforeRequest, Refused] {
        let situation = Situation {
            is_retry: true,
            ..situation(failure)
        };
        assert_eq!(
            config().decide(&situation, 0.5),
            retry(50, true),
            "{failure:?}"
        );
    }
}

#[test]
fn a_body_that_is_gone_cannot_be_repeated() {
    for failure in [Failure::ConnectFailure, STATUS] {
        let situation = Situation {
            is_body_replayable: false,
            ..situation(failure)
        };
        assert_eq!(
            config().decide(&situation, 0.5),
            Verdict::Stop(StopReason::BodyNotReplayable)
        );
    }
}

#[test]
fn no_try_is_begun_that_cannot_finish() {
    let exact = Situation {
        time_left: Duration::from_millis(51),
        ..situation(STATUS)
    };
    assert_eq!(config().decide(&exact, 0.5), retry(50, false));
    let short = Situation {
        time_left: Duration::from_micros(50_999),
        ..situation(STATUS)
    };
    assert_eq!(
        config().decide(&short, 0.5),
        Verdict::Stop(StopReason::NoTimeLeft)
    );
}

#[test]
fn a_wait_that_the_backend_asked_for_replaces_the_backoff() {
    let asked = Failure::Status {
        retry_after: Some(Duration::from_secs(3)),
    };
    assert_eq!(config().decide(&situation(asked), 0.5), retry(3_000, false));
    let deaf = RetryConfig {
        respect_retry_after: false,
        ..config()
    };
    assert_eq!(deaf.decide(&situation(asked), 0.5), retry(50, false));
    let absurd = Situation {
        time_left: Duration::MAX,
        ..situation(Failure::Status {
            retry_after: Some(Duration::MAX),
        })
    };
    assert_eq!(
        config().decide(&absurd, 0.5),
        Verdict::Retry {
            wait: LONGEST_RETRY_AFTER,
            is_transparent: false
        }
    );
}

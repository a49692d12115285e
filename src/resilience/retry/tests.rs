use crate::resilience::retry::*;

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

fn context(failure: FailureKind) -> RetryContext {
    RetryContext {
        failure,
        is_idempotent: true,
        is_body_replayable: true,
        is_retried_by_downstream: false,
        retries: 0,
        transparent_retries: 0,
        time_left: Duration::from_secs(10),
    }
}

const STATUS: FailureKind = FailureKind::Status { retry_after: None };

fn retry_after(wait_millis: u64, is_transparent: bool) -> RetryDecision {
    RetryDecision::Retry {
        wait: Duration::from_millis(wait_millis),
        is_transparent,
    }
}

/// Covers every failure, for an idempotent request and for one that is not.
#[test]
fn a_request_that_may_have_run_is_retried_only_if_idempotent() {
    use FailureKind::*;
    let never = RetryDecision::Stop(RetryStopReason::NotIdempotent);
    let table = [
        (ConnectFailure, retry_after(50, true), retry_after(50, true)),
        (
            ResetBeforeRequest,
            retry_after(50, true),
            retry_after(50, true),
        ),
        (RefusedStream, retry_after(50, true), retry_after(50, true)),
        (Reset, retry_after(50, false), never),
        (PerTryTimeout, retry_after(50, false), never),
        (STATUS, retry_after(50, false), never),
        (
            UnprocessedStatus { retry_after: None },
            retry_after(50, false),
            retry_after(50, false),
        ),
        (
            NotRetryable,
            RetryDecision::Stop(RetryStopReason::NotTriggered),
            RetryDecision::Stop(RetryStopReason::NotTriggered),
        ),
    ];
    for (failure, idempotent, other) in table {
        assert_eq!(
            config().decide(&context(failure), 0.5),
            idempotent,
            "{failure:?}, idempotent"
        );
        let context = RetryContext {
            is_idempotent: false,
            ..context(failure)
        };
        assert_eq!(
            config().decide(&context, 0.5),
            other,
            "{failure:?}, not idempotent"
        );
    }
}

#[test]
fn retry_non_idempotent_allows_methods_that_are_not_idempotent() {
    let config = RetryConfig {
        retry_non_idempotent: true,
        ..config()
    };
    let context = RetryContext {
        is_idempotent: false,
        ..context(STATUS)
    };
    assert_eq!(config.decide(&context, 0.5), retry_after(50, false));
}

#[test]
fn a_failure_without_its_trigger_is_not_retried() {
    use FailureKind::*;
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
        RefusedStream,
        Reset,
        PerTryTimeout,
    ] {
        assert_eq!(
            config.decide(&context(failure), 0.5),
            RetryDecision::Stop(RetryStopReason::NotTriggered),
            "{failure:?}"
        );
    }
}

#[test]
fn attempts_and_transparent_retries_are_bounded_separately() {
    let used = RetryContext {
        retries: 2,
        ..context(STATUS)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        RetryDecision::Stop(RetryStopReason::AttemptsExhausted)
    );
    let used = RetryContext {
        retries: 2,
        transparent_retries: 1,
        ..context(FailureKind::ConnectFailure)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        retry_after(100, true),
        "the second transparent one"
    );
    let used = RetryContext {
        transparent_retries: 2,
        ..context(FailureKind::ConnectFailure)
    };
    assert_eq!(
        config().decide(&used, 0.5),
        RetryDecision::Stop(RetryStopReason::AttemptsExhausted)
    );
}

#[test]
fn a_request_retried_downstream_is_retried_only_if_it_was_never_processed() {
    use FailureKind::*;
    for failure in [
        Reset,
        PerTryTimeout,
        STATUS,
        UnprocessedStatus { retry_after: None },
    ] {
        let context = RetryContext {
            is_retried_by_downstream: true,
            ..context(failure)
        };
        assert_eq!(
            config().decide(&context, 0.5),
            RetryDecision::Stop(RetryStopReason::RetriedByDownstream),
            "{failure:?}"
        );
    }
    for failure in [ConnectFailure, ResetBeforeRequest, RefusedStream] {
        let context = RetryContext {
            is_retried_by_downstream: true,
            ..context(failure)
        };
        assert_eq!(
            config().decide(&context, 0.5),
            retry_after(50, true),
            "{failure:?}"
        );
    }
}

#[test]
fn a_request_without_a_replayable_body_is_not_retried() {
    for failure in [FailureKind::ConnectFailure, STATUS] {
        let context = RetryContext {
            is_body_replayable: false,
            ..context(failure)
        };
        assert_eq!(
            config().decide(&context, 0.5),
            RetryDecision::Stop(RetryStopReason::BodyNotReplayable)
        );
    }
}

#[test]
fn an_attempt_that_does_not_fit_the_time_left_is_not_made() {
    let exact = RetryContext {
        time_left: Duration::from_millis(51),
        ..context(STATUS)
    };
    assert_eq!(config().decide(&exact, 0.5), retry_after(50, false));
    let short = RetryContext {
        time_left: Duration::from_micros(50_999),
        ..context(STATUS)
    };
    assert_eq!(
        config().decide(&short, 0.5),
        RetryDecision::Stop(RetryStopReason::NoTimeLeft)
    );
}

#[test]
fn retry_after_replaces_the_backoff_and_is_capped() {
    let status = FailureKind::Status {
        retry_after: Some(Duration::from_secs(3)),
    };
    assert_eq!(
        config().decide(&context(status), 0.5),
        retry_after(3_000, false)
    );
    let ignoring_retry_after = RetryConfig {
        respect_retry_after: false,
        ..config()
    };
    assert_eq!(
        ignoring_retry_after.decide(&context(status), 0.5),
        retry_after(50, false)
    );
    let absurd = RetryContext {
        time_left: Duration::MAX,
        ..context(FailureKind::Status {
            retry_after: Some(Duration::MAX),
        })
    };
    assert_eq!(
        config().decide(&absurd, 0.5),
        RetryDecision::Retry {
            wait: MAX_RETRY_AFTER,
            is_transparent: false
        }
    );
}

use super::*;

#[test]
fn decisions_are_described_in_plain_words() {
    let refused = |is_shadow| Decision::Refused {
        reason: Reason::BreakerOpen,
        by: "app".into(),
        evidence: "5 of 5 calls failed".into(),
        is_shadow,
    };
    assert_eq!(
        refused(false).to_string(),
        "rejected: breaker_open by app: 5 of 5 calls failed"
    );
    assert_eq!(
        refused(true).to_string(),
        "would have been rejected: breaker_open by app: 5 of 5 calls failed"
    );
    let failed = Decision::AttemptFailed {
        attempt: 1,
        endpoint: "10.0.0.7:80".into(),
        cause: "503".into(),
        duration: Duration::from_millis(12),
    };
    assert_eq!(
        failed.to_string(),
        "attempt 1 at 10.0.0.7:80 failed after 12.0ms: 503"
    );
    let retried = Decision::Retried {
        wait: Duration::from_millis(25),
        is_transparent: false,
        budget_remaining: 9,
    };
    assert_eq!(
        retried.to_string(),
        "retried after 25.0ms: the policy retries this failure, 9 retries are left in the budget"
    );
    assert_eq!(
        Decision::NotRetried {
            cause: "all attempts are used",
            evidence: "2 of 2".into()
        }
        .to_string(),
        "not retried: all attempts are used: 2 of 2"
    );
}

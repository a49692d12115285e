use crate::telemetry::decision_log::*;

fn request_with_id(id: usize) -> RequestDecisions {
    let empty = String::new;
    RequestDecisions {
        ended_at: SystemTime::UNIX_EPOCH,
        request_id: id.to_string(),
        trace_id: empty(),
        method: empty(),
        host: empty(),
        path: empty(),
        route: empty(),
        backend: empty(),
        endpoint: empty(),
        status: 503,
        reason: empty(),
        attempts: 0,
        duration: Duration::ZERO,
        decisions: Vec::new(),
    }
}

#[test]
fn the_log_retains_only_the_newest_requests() {
    let decisions = DecisionLog::default();
    (0..MAX_LOGGED_REQUESTS + 10).for_each(|id| decisions.record(request_with_id(id)));
    let all = decisions.find(|_| true, usize::MAX);
    assert_eq!(
        (all.len(), &*all[0].request_id),
        (MAX_LOGGED_REQUESTS, &*(MAX_LOGGED_REQUESTS + 9).to_string())
    );
    assert!(
        decisions
            .find(|request| request.request_id == "9", 1)
            .is_empty(),
        "it has made room"
    );
    assert_eq!(
        decisions
            .find(|request| request.request_id == "10", 1)
            .len(),
        1
    );
}

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
        "refused: breaker_open by app: 5 of 5 calls failed"
    );
    assert_eq!(
        refused(true).to_string(),
        "would have been refused: breaker_open by app: 5 of 5 calls failed"
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
        "tried again after 25.0ms: the policy wants it tried again, 9 retries are left in the budget"
    );
    assert_eq!(
        Decision::NotRetried {
            cause: "all attempts are used",
            evidence: "2 of 2".into()
        }
        .to_string(),
        "not tried again: all attempts are used: 2 of 2"
    );
}

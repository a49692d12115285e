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

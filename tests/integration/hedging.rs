//! Hedging: another attempt is sent while the first one has neither responded nor failed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

/// Returns hedging with these further fields, and a retry budget that covers all hedges of a test.
fn hedging_section(fields: &str) -> String {
    format!(
        "  defaults: {{hedging: {{maxAttempts: 2, {fields}}}, \
         retryConstraint: {{minRetryRate: {{count: 1000}}}}}}\n"
    )
}

/// Starts a backend that never responds. The number counts its closed connections.
fn unresponsive_backend() -> (ScriptedBackend, Arc<AtomicUsize>) {
    let closed = Arc::new(AtomicUsize::new(0));
    let shared_closed = closed.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.read_request();
        connection.wait_for_close();
        shared_closed.fetch_add(1, Ordering::SeqCst);
    });
    (backend, closed)
}

#[test]
fn a_slow_request_is_hedged_to_another_endpoint_and_the_loser_is_cancelled() {
    let ((slow, closed), fast) = (unresponsive_backend(), ScriptedBackend::healthy());
    let sidecar = Sidecar::start(&policy(
        &[slow.address, fast.address],
        &hedging_section("hedgingDelay: 30ms"),
    ));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "hello");
    }
    let hedged_count = slow.requests().len();
    assert!(
        hedged_count > 0 && fast.requests().len() == 20,
        "{hedged_count} of 20 requests were sent to the slow endpoint first"
    );
    eventually("the attempts at the slow endpoint are cancelled", || {
        closed.load(Ordering::SeqCst) == hedged_count
    });
    assert_eq!(
        sidecar.metric(r#"outrigger_hedges_total{backend="app",result="won"}"#),
        sidecar.metric(r#"outrigger_hedges_total{backend="app",result="sent"}"#)
    );
    let attempts: Vec<String> = fast
        .requests()
        .iter()
        .map(|request| request.header("x-outrigger-attempt").unwrap().to_owned())
        .collect();
    assert!(
        attempts.iter().any(|attempt| attempt == "2"),
        "{attempts:?}"
    );
    assert_eq!(sidecar.in_flight(), 0);
}

#[test]
fn a_timely_response_is_not_hedged() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &hedging_section("hedgingDelay: 10s"),
    ));
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        (
            backend.requests().len(),
            sidecar.metric(r#"outrigger_hedges_total{backend="app",result="sent"}"#)
        ),
        (1, 0.0)
    );
}

#[test]
fn only_idempotent_requests_without_a_body_are_hedged() {
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\npay",
    ] {
        let backend = ScriptedBackend::responding_with(|_| {
            crate::support::simulate_delay(Duration::from_millis(60));
            ok_response("slow")
        });
        let sidecar = Sidecar::start(&policy(
            &[backend.address],
            &hedging_section("hedgingDelay: 1ms"),
        ));
        assert_eq!(
            sidecar.client().send(request).read_response().text(),
            "slow"
        );
        assert_eq!(backend.requests().len(), 1, "{request}");
    }
}

#[test]
fn a_failed_attempt_sends_the_hedge_at_once_and_the_last_failure_is_forwarded() {
    let (failing, healthy) = (
        ScriptedBackend::responding_with(|_| response(503, "failing")),
        ScriptedBackend::healthy(),
    );
    let sidecar = Sidecar::start(&policy(
        &[failing.address, healthy.address],
        &hedging_section("hedgingDelay: 10s"),
    ));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "hello");
    }
    assert!(!failing.requests().is_empty());
    let sidecar = Sidecar::start(&policy(
        &[failing.address, ScriptedBackend::unused_address()],
        &hedging_section("hedgingDelay: 10s"),
    ));
    for _ in 0..5 {
        assert_eq!(
            sidecar.get("/").text(),
            "failing",
            "a response takes precedence over a connect failure"
        );
    }
    let unreachable = Sidecar::start(&policy(
        &[ScriptedBackend::unused_address()],
        &hedging_section("hedgingDelay: 10s"),
    ));
    let response = unreachable.get("/");
    assert_eq!(
        (
            response.status,
            response.reason().split(':').next().unwrap()
        ),
        (502, "connect_failed")
    );
    eventually("both attempts are logged", || {
        unreachable.access_log_lines(1)[0]["attempts"] == 2
    });
}

#[test]
fn hedges_stay_within_the_retry_budget() {
    let (slow, _) = unresponsive_backend();
    let fast = ScriptedBackend::healthy();
    let budget =
        "retryConstraint: {budget: {percent: 0}, minRetryRate: {count: 2, interval: 100s}}";
    let hedging = format!(
        "  defaults: {{hedging: {{hedgingDelay: 1ms}}, \
         timeouts: {{request: 100ms, backendRequest: 100ms}}, {budget}}}\n"
    );
    let sidecar = Sidecar::start(&policy(&[slow.address, fast.address], &hedging));
    for _ in 0..24 {
        sidecar.get("/");
    }
    assert_eq!(
        sidecar.metric(r#"outrigger_hedges_total{backend="app",result="sent"}"#),
        2.0
    );
    assert!(sidecar.metric(r#"outrigger_hedges_total{backend="app",result="no_budget"}"#) > 0.0);
}

#[test]
fn the_hedging_delay_is_learned_if_none_is_configured() {
    let backend = ScriptedBackend::start(|mut connection| {
        while let Some(request) = connection.read_request() {
            let is_first_attempt = request.header("x-outrigger-attempt") == Some("1");
            if request.request_line().contains("/slow") && is_first_attempt {
                return connection.wait_for_close();
            }
            connection.send(ok_response("hello"));
        }
    });
    let hedging = "  defaults: {hedging: {}, timeouts: {request: 2s, backendRequest: 2s}, \
        retryConstraint: {minRetryRate: {count: 1000}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], hedging));
    let mut client = sidecar.client();
    for _ in 0..60 {
        client.get("/");
    }
    let won_hedges = || sidecar.metric(r#"outrigger_hedges_total{backend="app",result="won"}"#);
    let won_before = won_hedges();
    assert_eq!(
        client.get("/slow").text(),
        "hello",
        "the hedge is sent before the request timeout"
    );
    assert!(won_hedges() > won_before);
}

#[test]
fn shadow_hedging_counts_slow_responses_and_sends_nothing() {
    let backend = ScriptedBackend::responding_with(|_| {
        crate::support::simulate_delay(Duration::from_millis(30));
        ok_response("slow")
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &hedging_section("mode: Shadow, hedgingDelay: 1ms"),
    ));
    assert_eq!(sidecar.get("/").text(), "slow");
    assert_eq!(
        (
            backend.requests().len(),
            sidecar.metric(r#"outrigger_hedges_total{backend="app",result="shadow"}"#)
        ),
        (1, 1.0)
    );
}

#[test]
fn an_endpoint_that_loses_every_hedge_is_ejected_as_slow() {
    let (slow, _) = unresponsive_backend();
    let (one, two) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let sidecar = Sidecar::start(
        &PolicyBuilder::new(&[slow.address, one.address, two.address])
            .backend_fields("loadBalancer: {type: RoundRobin}")
            .backend_fields("outlierDetection: {interval: 200ms, slowFactor: 3}")
            .sections(&hedging_section("hedgingDelay: 40ms"))
            .build(),
    );
    let mut client = sidecar.client();
    eventually("the slow endpoint is ejected", || {
        (0..10).for_each(|_| assert_eq!(client.get("/").text(), "hello"));
        sidecar.metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="slow"}"#) >= 1.0
    });
    assert!(sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="cancelled"}"#) > 0.0);
}

#[test]
fn a_client_disconnect_cancels_all_attempts() {
    let ((one, one_closed), (two, two_closed)) = (unresponsive_backend(), unresponsive_backend());
    let sidecar = Sidecar::start(&policy(
        &[one.address, two.address],
        &hedging_section("hedgingDelay: 1ms"),
    ));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("both attempts have arrived", || {
        one.requests().len() + two.requests().len() == 2
    });
    drop(client);
    eventually("both attempts are cancelled", || {
        one_closed.load(Ordering::SeqCst) + two_closed.load(Ordering::SeqCst) == 2
    });
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
}

//! A second request before the first has failed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::policy,
};

/// Never hedges but by its delay, and has a budget for all of it.
fn hedged(delay: &str) -> String {
    format!(
        "  defaults: {{hedging: {{maxAttempts: 2, hedgingDelay: {delay}}}, retryConstraint: {{minRetryRate: {{count: 1000}}}}}}\n"
    )
}

/// Takes requests and answers none; how many of its connections were closed.
fn silent() -> (Backend, Arc<AtomicUsize>) {
    let closed = Arc::new(AtomicUsize::new(0));
    let there = closed.clone();
    let backend = Backend::start(move |mut connection| {
        connection.request();
        connection.wait_for_close();
        there.fetch_add(1, Ordering::SeqCst);
    });
    (backend, closed)
}

#[test]
fn a_late_answer_is_asked_for_elsewhere_and_the_loser_is_cancelled() {
    let ((slow, closed), quick) = (silent(), Backend::healthy());
    let sidecar = Sidecar::start(&policy(&[slow.address, quick.address], &hedged("30ms")));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "hello");
    }
    let asked_twice = slow.seen().len();
    assert!(
        asked_twice > 0 && quick.seen().len() == 20,
        "{asked_twice} of 20 went to the slow one first"
    );
    eventually("the slow one is told that nobody waits", || {
        closed.load(Ordering::SeqCst) == asked_twice
    });
    assert_eq!(
        sidecar.metric(r#"outrigger_hedges_total{backend="app",result="won"}"#),
        sidecar.metric(r#"outrigger_hedges_total{backend="app",result="sent"}"#)
    );
    let attempts: Vec<String> = quick
        .seen()
        .iter()
        .map(|seen| seen.header("x-outrigger-attempt").unwrap().to_owned())
        .collect();
    assert!(
        attempts.iter().any(|attempt| attempt == "2"),
        "{attempts:?}"
    );
    assert_eq!(sidecar.in_flight(), 0);
}

#[test]
fn an_answer_in_time_is_asked_for_once() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], &hedged("10s")));
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        (
            backend.seen().len(),
            sidecar.metric(r#"outrigger_hedges_total{backend="app",result="sent"}"#)
        ),
        (1, 0.0)
    );
}

#[test]
fn only_what_is_idempotent_and_has_no_body_is_hedged() {
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\npay",
    ] {
        let backend = Backend::answering(|_| {
            crate::support::take(Duration::from_millis(60));
            ok("late")
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], &hedged("1ms")));
        assert_eq!(sidecar.client().send(request).answer().text(), "late");
        assert_eq!(backend.seen().len(), 1, "{request}");
    }
}

#[test]
fn a_failure_makes_the_next_go_out_at_once_and_the_last_one_is_passed_on() {
    let (bad, good) = (
        Backend::answering(|_| answer(503, "not here")),
        Backend::healthy(),
    );
    let sidecar = Sidecar::start(&policy(&[bad.address, good.address], &hedged("10s")));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "hello");
    }
    assert!(!bad.seen().is_empty());
    let sidecar = Sidecar::start(&policy(&[bad.address, Backend::nowhere()], &hedged("10s")));
    for _ in 0..5 {
        assert_eq!(
            sidecar.get("/").text(),
            "not here",
            "an answer of the app's is better than none"
        );
    }
    let nowhere = Sidecar::start(&policy(&[Backend::nowhere()], &hedged("10s")));
    let answer = nowhere.get("/");
    assert_eq!(
        (answer.status, answer.reason().split(':').next().unwrap()),
        (502, "connect_failed")
    );
    eventually("it is written down", || nowhere.log(1)[0]["attempts"] == 2);
}

#[test]
fn hedges_stay_within_the_retry_budget() {
    let (slow, _) = silent();
    let quick = Backend::healthy();
    let budget =
        "retryConstraint: {budget: {percent: 0}, minRetryRate: {count: 2, interval: 100s}}";
    let hedging = format!(
        "  defaults: {{hedging: {{hedgingDelay: 1ms}}, timeouts: {{request: 100ms, backendRequest: 100ms}}, {budget}}}\n"
    );
    let sidecar = Sidecar::start(&policy(&[slow.address, quick.address], &hedging));
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
fn without_a_delay_it_is_learned_what_late_is() {
    let backend = Backend::answering(|seen| {
        if seen.line().contains("slow") && seen.header("x-outrigger-attempt") == Some("1") {
            crate::support::take(Duration::from_secs(3));
        }
        ok("hello")
    });
    let hedging = "  defaults: {hedging: {}, retryConstraint: {minRetryRate: {count: 1000}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], hedging));
    let mut client = sidecar.client();
    for _ in 0..60 {
        client.get("/");
    }
    let began = std::time::Instant::now();
    assert_eq!(client.get("/slow").text(), "hello");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(sidecar.metric(r#"outrigger_hedges_total{backend="app",result="won"}"#) >= 1.0);
}

#[test]
fn in_shadow_mode_late_answers_are_counted_and_nothing_is_sent() {
    let backend = Backend::answering(|_| {
        crate::support::take(Duration::from_millis(30));
        ok("late")
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &hedged("1ms").replace("{maxAttempts", "{mode: Shadow, maxAttempts"),
    ));
    assert_eq!(sidecar.get("/").text(), "late");
    assert_eq!(
        (
            backend.seen().len(),
            sidecar.metric(r#"outrigger_hedges_total{backend="app",result="shadow"}"#)
        ),
        (1, 1.0)
    );
}

#[test]
fn an_endpoint_that_always_loses_is_seen_to_be_slow() {
    let (slow, _) = silent();
    let (one, two) = (Backend::healthy(), Backend::healthy());
    let text = policy(&[slow.address, one.address, two.address], &hedged("40ms"));
    let sidecar = Sidecar::start(&text.replace("]}\n  routes", "], loadBalancer: {type: RoundRobin}, outlierDetection: {interval: 200ms, slowFactor: 3}}\n  routes"));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        (0..10).for_each(|_| assert_eq!(client.get("/").text(), "hello"));
        sidecar.metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="slow"}"#) >= 1.0
    });
    assert!(sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="cancelled"}"#) > 0.0);
}

#[test]
fn a_client_that_leaves_cancels_all_of_them() {
    let ((one, one_closed), (two, two_closed)) = (silent(), silent());
    let sidecar = Sidecar::start(&policy(&[one.address, two.address], &hedged("1ms")));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("both are asked", || {
        one.seen().len() + two.seen().len() == 2
    });
    drop(client);
    eventually("both are told", || {
        one_closed.load(Ordering::SeqCst) + two_closed.load(Ordering::SeqCst) == 2
    });
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
}

//! Deadlines across hops: what is left is told to the next, and nobody works for one that has given up.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::policy,
};

fn ask(deadline: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-deadline-ms: {deadline}\r\n\r\n")
}

fn told(backend: &Backend) -> u64 {
    backend
        .seen()
        .last()
        .unwrap()
        .header("x-outrigger-deadline-ms")
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn the_next_is_told_the_shorter_of_what_the_sender_and_the_policy_allow() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 10s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    assert_eq!(client.send(ask("5000")).answer().status, 200);
    assert!((1..=5_000).contains(&told(&backend)), "{}", told(&backend));
    assert_eq!(client.send(ask("60000")).answer().status, 200);
    assert!(
        (5_001..=10_000).contains(&told(&backend)),
        "{}",
        told(&backend)
    );
}

#[test]
fn without_any_limit_nothing_is_told_and_an_absurd_one_says_nothing() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    for absurd in ["soon", "-1", "1e3", "99999999999999999999999999"] {
        assert_eq!(client.send(ask(absurd)).answer().status, 200, "{absurd}");
        assert_eq!(
            backend
                .seen()
                .last()
                .unwrap()
                .header("x-outrigger-deadline-ms"),
            None,
            "{absurd}"
        );
    }
}

#[test]
fn what_is_past_its_deadline_is_not_begun() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let answer = sidecar.client().send(ask("0")).answer();
    assert_eq!((answer.status, answer.reason()), (504, "request_timeout"));
    assert_eq!(backend.seen().len(), 0);
}

#[test]
fn at_its_end_the_work_is_cancelled_at_the_app_and_is_no_failure_of_its() {
    static CANCELLED: AtomicUsize = AtomicUsize::new(0);
    let backend = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
        CANCELLED.fetch_add(1, Ordering::SeqCst);
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 1}}\n",
    ));
    for asked in 1..=3 {
        let answer = sidecar.client().send(ask("60")).answer();
        assert_eq!(
            (answer.status, answer.reason()),
            (504, format!("request_timeout:{}", backend.address).as_str())
        );
        eventually("the app is told by the end of its connection", || {
            CANCELLED.load(Ordering::SeqCst) == asked
        });
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
}

#[test]
fn through_two_sidecars_the_time_only_shrinks() {
    let backend = Backend::healthy();
    let inner = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 10s, backendRequest: 0s}}\n",
    ));
    let outer = Sidecar::start(&policy(
        &[inner.address("inbound")],
        "  defaults: {timeouts: {request: 8s, backendRequest: 5s}}\n",
    ));
    assert_eq!(outer.get("/").status, 200);
    assert!(
        (4_000..=5_000).contains(&told(&backend)),
        "{}: what an attempt has is less than what the request has",
        told(&backend)
    );
}

/// The sidecar before has the same limits, and tells what is left of them: that is no choice of anybody's.
#[test]
fn an_app_that_hangs_trips_the_breaker_behind_a_sidecar_with_the_same_limits() {
    let silent = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let limits = "  defaults: {timeouts: {request: 200ms, backendRequest: 100ms}, circuitBreaker: {consecutiveFailures: 3}}\n";
    let inner = Sidecar::start(&policy(&[silent.address], limits));
    let outer = Sidecar::start(&policy(
        &[inner.address("inbound")],
        &limits.replace("consecutiveFailures: 3", "consecutiveFailures: 100"),
    ));
    eventually("it opens", || {
        outer.get("/");
        inner.breaker("app")["state"] == "open"
    });
}

#[test]
fn no_try_is_begun_that_cannot_finish() {
    let backend = Backend::answering(|_| answer(503, "not yet"));
    let retry = "  defaults: {timeouts: {request: 10s}, retry: {attempts: 3, codes: [503], backoff: 0ms}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], retry));
    assert_eq!(
        sidecar.client().send(ask("9000")).answer().text(),
        "not yet"
    );
    assert_eq!(backend.seen().len(), 4);
    let late = Backend::answering(|_| {
        "HTTP/1.1 503 No\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[late.address], retry));
    assert_eq!(
        sidecar.client().send(ask("1900")).answer().status,
        503,
        "in two seconds nobody waits any more"
    );
    assert_eq!(
        (
            late.seen().len(),
            sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="no_time_left"}"#)
        ),
        (1, 1.0)
    );
}

#[test]
fn what_waited_past_its_deadline_is_not_begun() {
    let backend = Backend::healthy();
    let text = policy(&[backend.address], "");
    let fault = "faultInjection: {until: 2999-01-01T00:00:00Z, delay: {fixedDelay: 80ms}}";
    let sidecar = Sidecar::start(&text.replace("- {name: in,", &format!("- {{name: in, {fault},")));
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.send(ask("40")).answer().reason(), "request_timeout");
    assert_eq!(backend.seen().len(), 1, "its connection was at hand");
}

/// How long a client takes to send is not the backend's time, whoever has set a deadline.
#[test]
fn a_slow_upload_is_not_cut_off_by_a_deadline_until_the_answer() {
    let backend = Backend::answering(|_| ok("thanks"));
    let inner = Sidecar::start(&policy(&[backend.address], ""));
    let outer = Sidecar::start(&policy(
        &[inner.address("inbound")],
        "  defaults: {timeouts: {request: 150ms, backendRequest: 150ms}}\n",
    ));
    let mut client = outer.client();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    for piece in ["s", "l", "o", "w"] {
        crate::support::take(std::time::Duration::from_millis(80));
        client.send(piece);
    }
    assert_eq!(client.answer().text(), "thanks");
    assert!(told(&backend) <= 150, "{}", told(&backend));
}

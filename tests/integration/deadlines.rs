//! Deadlines across hops: what is left is told to the next, and nobody works for one that has given up.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::support::{Backend, Sidecar, backend::ok, eventually, sidecar::policy};

fn ask(deadline: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-deadline-ms: {deadline}\r\n\r\n")
}

fn told(backend: &Backend) -> u64 {
    backend.seen().last().unwrap().header("x-outrigger-deadline-ms").unwrap().parse().unwrap()
}

#[test]
fn the_next_is_told_the_shorter_of_what_the_sender_and_the_policy_allow() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], "  defaults: {timeouts: {request: 10s}}\n"));
    let mut client = sidecar.client();
    assert_eq!(client.send(ask("5000")).answer().status, 200);
    assert!((1..=5_000).contains(&told(&backend)), "{}", told(&backend));
    assert_eq!(client.send(ask("60000")).answer().status, 200);
    assert!((5_001..=10_000).contains(&told(&backend)), "{}", told(&backend));
}

#[test]
fn without_any_limit_nothing_is_told_and_an_absurd_one_says_nothing() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], "  defaults: {timeouts: {request: 0s, backendRequest: 0s}}\n"));
    let mut client = sidecar.client();
    for absurd in ["soon", "-1", "1e3", "99999999999999999999999999"] {
        assert_eq!(client.send(ask(absurd)).answer().status, 200, "{absurd}");
        assert_eq!(backend.seen().last().unwrap().header("x-outrigger-deadline-ms"), None, "{absurd}");
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
    let sidecar = Sidecar::start(&policy(&[backend.address], "  defaults: {circuitBreaker: {consecutiveFailures: 1}}\n"));
    for asked in 1..=3 {
        let answer = sidecar.client().send(ask("60")).answer();
        assert_eq!((answer.status, answer.reason()), (504, format!("request_timeout:{}", backend.address).as_str()));
        eventually("the app is told by the end of its connection", || CANCELLED.load(Ordering::SeqCst) == asked);
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
}

#[test]
fn through_two_sidecars_the_time_only_shrinks_and_no_try_is_begun_that_cannot_finish() {
    let slow = Backend::answering(|_| {
        std::thread::park_timeout(Duration::from_millis(120));
        ok("late")
    });
    let inner = Sidecar::start(&policy(&[slow.address], "  defaults: {timeouts: {request: 10s, backendRequest: 0s}}\n"));
    let timeouts = "  defaults: {timeouts: {request: 80ms, backendRequest: 80ms}, retry: {attempts: 5, retryOn: [timeout], backoff: 1ms}}\n";
    let outer = Sidecar::start(&policy(&[inner.address("inbound")], timeouts));
    let answer = outer.get("/");
    assert_eq!(answer.status, 504);
    assert!(told(&slow) <= 80, "{}", told(&slow));
    assert_eq!(slow.seen().len(), 1);
}

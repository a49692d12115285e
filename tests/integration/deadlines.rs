//! Deadlines across hops: a sidecar forwards the remaining time, and cancels a request when the
//! deadline passes.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

fn request_with_deadline(deadline: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-deadline-ms: {deadline}\r\n\r\n")
}

fn forwarded_deadline_ms(backend: &ScriptedBackend) -> u64 {
    backend
        .requests()
        .last()
        .unwrap()
        .header("x-outrigger-deadline-ms")
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn the_forwarded_deadline_is_the_earlier_of_client_deadline_and_policy_timeout() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 10s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    assert_eq!(
        client
            .send(request_with_deadline("5000"))
            .read_response()
            .status,
        200
    );
    assert!(
        (1..=5_000).contains(&forwarded_deadline_ms(&backend)),
        "{}",
        forwarded_deadline_ms(&backend)
    );
    assert_eq!(
        client
            .send(request_with_deadline("60000"))
            .read_response()
            .status,
        200
    );
    assert!(
        (5_001..=10_000).contains(&forwarded_deadline_ms(&backend)),
        "{}",
        forwarded_deadline_ms(&backend)
    );
}

#[test]
fn no_deadline_is_forwarded_without_a_timeout_or_for_an_invalid_header() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    for invalid in ["soon", "-1", "1e3", "99999999999999999999999999"] {
        assert_eq!(
            client
                .send(request_with_deadline(invalid))
                .read_response()
                .status,
            200,
            "{invalid}"
        );
        assert_eq!(
            backend
                .requests()
                .last()
                .unwrap()
                .header("x-outrigger-deadline-ms"),
            None,
            "{invalid}"
        );
    }
}

#[test]
fn a_request_past_its_deadline_is_not_sent() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar
        .client()
        .send(request_with_deadline("0"))
        .read_response();
    assert_eq!(
        (response.status, response.reason()),
        (504, "request_timeout")
    );
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn an_expired_client_deadline_cancels_the_request_and_is_not_a_failure() {
    static CANCELLED: AtomicUsize = AtomicUsize::new(0);
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
        CANCELLED.fetch_add(1, Ordering::SeqCst);
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 1}}\n",
    ));
    for request_count in 1..=3 {
        let response = sidecar
            .client()
            .send(request_with_deadline("60"))
            .read_response();
        assert_eq!(
            (response.status, response.reason()),
            (504, format!("request_timeout:{}", backend.address).as_str())
        );
        eventually("the connection to the backend is closed", || {
            CANCELLED.load(Ordering::SeqCst) == request_count
        });
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
}

#[test]
fn the_deadline_only_shrinks_across_two_sidecars() {
    let backend = ScriptedBackend::healthy();
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
        (4_000..=5_000).contains(&forwarded_deadline_ms(&backend)),
        "{}: the time of an attempt is shorter than that of the request",
        forwarded_deadline_ms(&backend)
    );
}

/// The outer sidecar forwards the rest of its own timeout as the deadline. The client did not
/// choose that deadline, so its expiry counts as a failure of the backend.
#[test]
fn a_hanging_backend_trips_the_breaker_behind_a_sidecar_with_the_same_timeouts() {
    let silent = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let defaults = |consecutive_failures: u32| {
        format!(
            "  defaults: {{timeouts: {{request: 200ms, backendRequest: 100ms}}, \
             circuitBreaker: {{consecutiveFailures: {consecutive_failures}}}}}\n"
        )
    };
    let inner = Sidecar::start(&policy(&[silent.address], &defaults(3)));
    let outer = Sidecar::start(&policy(&[inner.address("inbound")], &defaults(100)));
    eventually("the breaker opens", || {
        outer.get("/");
        inner.breaker("app")["state"] == "open"
    });
}

#[test]
fn a_retry_that_cannot_finish_before_the_deadline_is_not_started() {
    let backend = ScriptedBackend::responding_with(|_| response(503, "not yet"));
    let retry = "  defaults: {timeouts: {request: 10s}, \
        retry: {attempts: 3, codes: [503], backoff: 0ms}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], retry));
    assert_eq!(
        sidecar
            .client()
            .send(request_with_deadline("9000"))
            .read_response()
            .text(),
        "not yet"
    );
    assert_eq!(backend.requests().len(), 4);
    let delayed = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 503 No\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[delayed.address], retry));
    assert_eq!(
        sidecar
            .client()
            .send(request_with_deadline("1900"))
            .read_response()
            .status,
        503,
        "`retry-after` exceeds the remaining time"
    );
    assert_eq!(
        (
            delayed.requests().len(),
            sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="no_time_left"}"#)
        ),
        (1, 1.0)
    );
}

#[test]
fn a_request_delayed_past_its_deadline_is_not_sent() {
    let backend = ScriptedBackend::healthy();
    let fault = "faultInjection: {until: 2999-01-01T00:00:00Z, delay: {fixedDelay: 80ms}}";
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .route_fields(fault)
            .build(),
    );
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(
        client
            .send(request_with_deadline("40"))
            .read_response()
            .reason(),
        "request_timeout"
    );
    assert_eq!(
        backend.requests().len(),
        1,
        "the request is not sent on the pooled connection"
    );
}

/// The time that a client takes to send a request does not count against any timeout.
#[test]
fn a_slow_upload_is_not_cut_off_by_the_response_deadline() {
    let backend = ScriptedBackend::responding_with(|_| ok_response("thanks"));
    let inner = Sidecar::start(&policy(&[backend.address], ""));
    let outer = Sidecar::start(&policy(
        &[inner.address("inbound")],
        "  defaults: {timeouts: {request: 150ms, backendRequest: 150ms}}\n",
    ));
    let mut client = outer.client();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    for piece in ["s", "l", "o", "w"] {
        crate::support::simulate_delay(std::time::Duration::from_millis(80));
        client.send(piece);
    }
    assert_eq!(client.read_response().text(), "thanks");
    assert!(
        forwarded_deadline_ms(&backend) <= 150,
        "{}",
        forwarded_deadline_ms(&backend)
    );
}

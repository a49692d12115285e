//! Timeouts of requests, attempts, bodies, request heads and idle connections.

use std::time::{Duration, Instant};

use crate::support::{
    ScriptedBackend, Sidecar, TEST_TIMEOUT,
    backend::ok_response,
    eventually,
    policy::{PolicyBuilder, policy},
    simulate_delay,
};

fn unresponsive_backend() -> ScriptedBackend {
    ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    })
}

#[test]
fn an_app_that_does_not_respond_times_out() {
    let backend = unresponsive_backend();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {backendRequest: 30ms}}\n",
    ));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.reason()),
        (
            504,
            format!("upstream_timeout:{}", backend.address).as_str()
        )
    );
    assert!(
        response
            .header("proxy-status")
            .unwrap()
            .contains("http_response_timeout")
    );
    eventually("the attempt's connection is closed", || {
        sidecar.admin_json("/api/v1/backends")[0]["connections"] == 0
    });
}

#[test]
fn the_request_timeout_bounds_all_attempts() {
    let backend = unresponsive_backend();
    let defaults = concat!(
        "  defaults:\n",
        "    timeouts: {request: 60ms, backendRequest: 40ms}\n",
        "    retry: {attempts: 10, retryOn: [timeout], backoff: 0ms}\n"
    );
    let sidecar = Sidecar::start(&policy(&[backend.address], defaults));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.reason()),
        (504, format!("request_timeout:{}", backend.address).as_str())
    );
    assert_eq!(
        backend.requests().len(),
        2,
        "the request timeout ends the second attempt"
    );
}

#[test]
fn a_timeout_of_zero_is_disabled() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        simulate_delay(Duration::from_millis(50));
        connection.send(ok_response("late"));
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s, connect: 0s, streamIdle: 0s}}\n",
    ));
    assert_eq!(sidecar.get("/").text(), "late");
}

#[test]
fn an_idle_body_times_out_in_either_direction() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {streamIdle: 30ms}}\n",
    ));
    let response = sidecar.get("/");
    assert!(response.status == 200 && !response.is_complete);
    assert_eq!(
        sidecar.access_log_lines(1)[0]["reason"],
        "stream_idle_timeout"
    );

    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf");
    let response = client.read_response();
    assert_eq!(
        (response.status, response.reason()),
        (408, "stream_idle_timeout")
    );
}

/// The request timeout starts when the client has sent the whole request.
#[test]
fn the_upload_does_not_count_towards_the_request_timeout() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 200ms, backendRequest: 200ms, streamIdle: 10s}}\n",
    ));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\n");
    for _ in 0..8 {
        simulate_delay(Duration::from_millis(50));
        client.send("x");
    }
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn a_trickled_request_head_times_out() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {headerTimeout: 100ms}")
            .build(),
    );
    let mut client = sidecar.client();
    let deadline = Instant::now() + TEST_TIMEOUT;
    client.send("GET / HTTP/1.1\r\nx-slow: ");
    while client.try_send("x") {
        assert!(Instant::now() < deadline, "the connection is still open");
        simulate_delay(Duration::from_millis(10));
    }
    let response = sidecar.client().send("GET / HTT").read_response();
    assert_eq!(
        (response.status, response.reason()),
        (408, "header_timeout")
    );
}

#[test]
fn an_idle_downstream_connection_is_closed() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {idleTimeout: 30ms}")
            .build(),
    );
    // A connection without a request.
    sidecar.client().wait_for_close();
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    // A connection after a response.
    client.wait_for_close();
}

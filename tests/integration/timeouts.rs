//! Nothing may take for ever.

use std::time::Instant;

use crate::support::{
    ScriptedBackend, Sidecar, TEST_TIMEOUT, backend::ok_response, eventually, policy::policy,
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
    let timeouts = "  defaults: {timeouts: {request: 60ms, backendRequest: 40ms}, retry: {attempts: 10, retryOn: [timeout], backoff: 0ms}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], timeouts));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.reason()),
        (504, format!("request_timeout:{}", backend.address).as_str())
    );
    assert_eq!(
        backend.requests().len(),
        2,
        "the second attempt was cut short"
    );
}

#[test]
fn a_zero_timeout_is_disabled() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        crate::support::simulate_delay(std::time::Duration::from_millis(50));
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

/// The clock of a request begins when its client has sent all of it.
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
        crate::support::simulate_delay(std::time::Duration::from_millis(50));
        client.send("x");
    }
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn a_trickled_request_head_times_out() {
    let backend = ScriptedBackend::healthy();
    let text = policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {headerTimeout: 100ms}",
    );
    let sidecar = Sidecar::start(&text);
    let mut client = sidecar.client();
    let deadline = Instant::now() + TEST_TIMEOUT;
    client.send("GET / HTTP/1.1\r\nx-slow: ");
    while client.try_send("x") {
        assert!(Instant::now() < deadline, "it was never given up");
        crate::support::simulate_delay(std::time::Duration::from_millis(10));
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
    let text = policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {idleTimeout: 30ms}",
    );
    let sidecar = Sidecar::start(&text);
    assert!(sidecar.client().is_closed(), "one that never said anything");
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    assert!(client.is_closed(), "one between two requests");
}

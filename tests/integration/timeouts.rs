//! Nothing may take for ever.

use std::time::Instant;

use crate::support::{Backend, PATIENCE, Sidecar, backend::ok, eventually, sidecar::policy};

fn silent() -> Backend {
    Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    })
}

#[test]
fn an_app_that_does_not_answer_is_given_up() {
    let backend = silent();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {backendRequest: 30ms}}\n",
    ));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.reason()),
        (
            504,
            format!("upstream_timeout:{}", backend.address).as_str()
        )
    );
    assert!(
        answer
            .header("proxy-status")
            .unwrap()
            .contains("http_response_timeout")
    );
    eventually("the attempt's connection is closed", || {
        sidecar.json("/api/v1/backends")[0]["connections"] == 0
    });
}

#[test]
fn the_whole_request_is_bounded_with_all_its_attempts() {
    let backend = silent();
    let timeouts = "  defaults: {timeouts: {request: 60ms, backendRequest: 40ms}, retry: {attempts: 10, retryOn: [timeout], backoff: 0ms}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], timeouts));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.reason()),
        (504, format!("request_timeout:{}", backend.address).as_str())
    );
    assert_eq!(backend.seen().len(), 2, "the second attempt was cut short");
}

#[test]
fn a_timeout_of_zero_is_off() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        crate::support::take(std::time::Duration::from_millis(50));
        connection.send(ok("late"));
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s, connect: 0s, streamIdle: 0s}}\n",
    ));
    assert_eq!(sidecar.get("/").text(), "late");
}

#[test]
fn a_body_that_falls_silent_is_given_up_in_either_direction() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {streamIdle: 30ms}}\n",
    ));
    let answer = sidecar.get("/");
    assert!(answer.status == 200 && !answer.is_complete);
    assert_eq!(sidecar.log(1)[0]["reason"], "stream_idle_timeout");

    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf");
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.reason()),
        (408, "stream_idle_timeout")
    );
}

/// The clock of a request begins when its client has sent all of it.
#[test]
fn a_long_upload_is_not_the_apps_fault() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 200ms, backendRequest: 200ms, streamIdle: 10s}}\n",
    ));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\n");
    for _ in 0..8 {
        crate::support::take(std::time::Duration::from_millis(50));
        client.send("x");
    }
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_head_that_trickles_is_given_up_however_often_a_byte_comes() {
    let backend = Backend::healthy();
    let text = policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {headerTimeout: 100ms}",
    );
    let sidecar = Sidecar::start(&text);
    let mut client = sidecar.client();
    let deadline = Instant::now() + PATIENCE;
    client.send("GET / HTTP/1.1\r\nx-slow: ");
    while client.try_send("x") {
        assert!(Instant::now() < deadline, "it was never given up");
        crate::support::take(std::time::Duration::from_millis(10));
    }
    let answer = sidecar.client().send("GET / HTT").answer();
    assert_eq!((answer.status, answer.reason()), (408, "header_timeout"));
}

#[test]
fn an_idle_connection_is_closed() {
    let backend = Backend::healthy();
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

//! Ambiguous or malformed messages. They are rejected, and the app never receives them as another
//! request.

use crate::support::{
    ScriptedBackend, Sidecar,
    policy::{PolicyBuilder, policy},
};

/// Requests that two parsers could interpret differently, with the status of the rejection.
const AMBIGUOUS_REQUESTS: &[(&str, &str, u16)] = &[
    (
        "content-length and transfer-encoding",
        concat!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\n\r\nGET /x HTTP/1.1\r\nhost: a\r\n\r\n"
        ),
        400,
    ),
    (
        "two values of content-length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        400,
    ),
    (
        "a content-length with a sign",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +4\r\n\r\nabcd",
        400,
    ),
    (
        "a negative content-length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        400,
    ),
    (
        "a transfer-encoding that does not end with chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        400,
    ),
    (
        "two transfer codings",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "two transfer-encoding lines",
        concat!(
            "POST / HTTP/1.1\r\nhost: a\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        400,
    ),
    (
        "a list in content-length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4, 4\r\n\r\nabcd",
        400,
    ),
    (
        "chunked over HTTP/1.0",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "two host headers",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        400,
    ),
    ("no host header", "GET / HTTP/1.1\r\n\r\n", 400),
    (
        "a host header that differs from the target",
        "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n",
        400,
    ),
    (
        "userinfo in the target",
        "GET http://u:p@a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        400,
    ),
    (
        "a space before the colon",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        400,
    ),
    (
        "a folded header line",
        "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n",
        400,
    ),
    (
        "a bare CR in a value",
        "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n",
        400,
    ),
    (
        "a TLS record",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        400,
    ),
    (
        "CONNECT",
        "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n",
        405,
    ),
];

#[test]
fn ambiguous_requests_are_rejected_and_do_not_reach_the_app() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {maxHeaderBytes: 8Ki}")
            .build(),
    );
    let long = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    let too_long = ("a head over the limit", &*long, 431);
    for &(case, bytes, status) in AMBIGUOUS_REQUESTS.iter().chain([&too_long]) {
        let mut client = sidecar.client();
        client.try_send(bytes);
        let response = client.read_response();
        assert_eq!(response.status, status, "{case}");
        assert!(!response.reason().is_empty(), "{case}");
    }
    assert_eq!(backend.requests().len(), 0);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn an_invalid_chunk_size_ends_the_request_and_the_connection() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    );
    let response = client.read_response();
    assert_eq!((response.status, response.reason()), (400, "bad_request"));
    client.wait_for_close();
    assert_eq!(
        backend.requests().len(),
        0,
        "the app receives no complete request"
    );
}

#[test]
fn a_malformed_response_becomes_a_502() {
    for malformed in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    ] {
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_request();
            connection.send(malformed);
            connection.wait_for_close();
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let response = sidecar.get("/");
        assert_eq!(
            (response.status, response.reason()),
            (
                502,
                format!("upstream_protocol_error:{}", backend.address).as_str()
            ),
            "{malformed:?}"
        );
    }
}

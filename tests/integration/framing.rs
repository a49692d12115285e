//! Raw bytes that two readers could understand differently: refused, and never seen by the app as something else.

use crate::support::{ScriptedBackend, Sidecar, policy::policy};

/// Requests that two readers could understand differently, with the status of the rejection.
const AMBIGUOUS_REQUESTS: &[(&str, &str, u16)] = &[
    (
        "both lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nhost: a\r\n\r\n",
        400,
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        400,
    ),
    (
        "a length that is none",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +4\r\n\r\nabcd",
        400,
    ),
    (
        "a negative length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        400,
    ),
    (
        "a coding that is not chunked last",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        400,
    ),
    (
        "two codings",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "a coding in two lines",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4, 4\r\n\r\nabcd",
        400,
    ),
    (
        "chunks over HTTP/1.0",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "two hosts",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        400,
    ),
    ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
    (
        "a host that differs from the target",
        "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n",
        400,
    ),
    (
        "userinfo",
        "GET http://u:p@a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        400,
    ),
    (
        "a space before the colon",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        400,
    ),
    (
        "a folded line",
        "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n",
        400,
    ),
    (
        "a bare CR in a value",
        "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n",
        400,
    ),
    (
        "no HTTP at all",
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
    let text = policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {maxHeaderBytes: 8Ki}",
    );
    let sidecar = Sidecar::start(&text);
    let long = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    let too_long = ("a head that is too long", &*long, 431);
    for &(what, bytes, status) in AMBIGUOUS_REQUESTS.iter().chain([&too_long]) {
        let mut client = sidecar.client();
        client.try_send(bytes);
        let response = client.read_response();
        assert_eq!(response.status, status, "{what}");
        assert!(!response.reason().is_empty(), "{what}");
    }
    assert_eq!(backend.requests().len(), 0);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_bad_chunk_size_ends_the_request_and_the_connection() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    );
    let response = client.read_response();
    assert_eq!((response.status, response.reason()), (400, "bad_request"));
    assert!(client.is_closed());
    assert_eq!(backend.requests().len(), 0, "it never arrived as a whole");
}

#[test]
fn a_malformed_response_becomes_a_502() {
    for nonsense in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    ] {
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_request();
            connection.send(nonsense);
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
            "{nonsense:?}"
        );
    }
}

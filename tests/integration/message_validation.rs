//! Hosts and framing fields that are checked strictly, with both protocols.

use http::Request;

use crate::support::{
    ScriptedBackend, Sidecar,
    http2::Http2Client,
    policy::{PolicyBuilder, policy},
};

const INVALID_HOSTS: &[&str] = &[
    "",
    ":80",
    "a:",
    "a:65536",
    "a:-1",
    "a:80:80",
    "a b",
    "a/b",
    "a?b",
    "a#b",
    "a\\b",
    "user@a",
    "a%2",
    "a\"b",
    "a{b}",
    "::1",
    "[::1",
    "[::1]80",
    "[::1%25eth0]",
    "[]",
];

const VALID_HOSTS: &[&str] = &["a", "A.Test.:8080", "10.0.0.1", "[::1]:81", "a:0"];

#[test]
fn an_http1_request_with_an_invalid_host_is_rejected() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    for host in INVALID_HOSTS {
        let mut client = sidecar.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        assert_eq!(client.read_response().status, 400, "{host}");
    }
    assert_eq!(backend.requests().len(), 0, "the app receives none of them");
    for host in VALID_HOSTS {
        let mut client = sidecar.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        assert_eq!(client.read_response().status, 200, "{host}");
    }
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.read_response().status, 200, "HTTP/1.0 has no host");
    let mut client = sidecar.client();
    client.send("GET http://a:99999/ HTTP/1.1\r\nhost: a:99999\r\n\r\n");
    assert_eq!(client.read_response().status, 400, "the absolute form");
}

#[test]
fn an_http2_request_with_an_invalid_host_is_rejected() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = Http2Client::connect(sidecar.address("inbound"));
    for host in INVALID_HOSTS {
        let mut request = Request::get("/").body(()).unwrap();
        request.headers_mut().insert("host", host.parse().unwrap());
        let status = client.send_request(request, b"", None).unwrap().status;
        assert_eq!(status, 400, "{host}");
    }
    assert_eq!(backend.requests().len(), 0, "the app receives none of them");
}

#[test]
fn an_http2_request_with_invalid_fields_is_rejected_before_the_app_sees_it() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = Http2Client::connect(sidecar.address("inbound"));
    for (name, value) in [
        ("content-length", ""),
        ("content-length", "+0"),
        ("content-length", "0, 0"),
        ("a\"b", "x"),
    ] {
        let mut request = Request::get("http://a/").body(()).unwrap();
        let name = http::HeaderName::from_lowercase(name.as_bytes()).unwrap();
        request
            .headers_mut()
            .insert(name.clone(), value.parse().unwrap());
        let outcome = client.send_request(request, b"", None);
        // h2 resets a stream whose length it cannot parse.
        let is_rejected = outcome
            .as_ref()
            .map_or(true, |response| response.status == 400);
        assert!(is_rejected, "{name}: {value}: {outcome:?}");
    }
    assert_eq!(backend.requests().len(), 0, "the app receives none of them");
}

#[test]
fn a_response_with_an_unsupported_transfer_coding_or_length_becomes_a_502() {
    for fields in [
        "transfer-encoding: gzip",
        "transfer-encoding: gzip, chunked",
        "content-length: 5, 6",
        "content-length: 0x1",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_request();
            connection.send(&bytes);
            connection.wait_for_close();
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let response = sidecar.get("/");
        assert_eq!(response.status, 502, "{fields}");
        assert!(
            response.reason().starts_with("upstream_protocol_error"),
            "{fields}: {}",
            response.reason()
        );
        let client = Http2Client::connect(sidecar.address("inbound"));
        assert_eq!(client.get("/").status, 502, "{fields} to an HTTP/2 client");
    }
}

#[test]
fn a_content_length_is_forwarded_once_and_without_leading_zeros() {
    for field in [
        "content-length: 005",
        "content-length: 5, 5",
        "content-length: 5\r\ncontent-length: 05",
    ] {
        let backend = ScriptedBackend::responding_with(move |_| {
            format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\nhello")
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let response = sidecar.get("/");
        assert_eq!(response.headers("content-length"), ["5"], "{field}");
        assert_eq!(response.text(), "hello", "{field}");
    }
}

#[test]
fn a_204_has_no_framing_fields() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar.get("/");
    assert_eq!(response.status, 204);
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("transfer-encoding"), None);
}

#[test]
fn the_bytes_of_a_tunnel_are_counted_in_both_directions() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
        let bytes = connection.read_exact(5).unwrap();
        connection.send(bytes);
    });
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&backend).build());
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
    assert_eq!(client.read_head().unwrap().0, 101);
    client.send("hello");
    assert_eq!(client.read_raw(5), b"hello");
    drop(client);
    let line = &sidecar.access_log_lines(1)[0];
    assert_eq!(line["bytes_received"], 5, "{line}");
    assert_eq!(line["bytes_sent"], 5, "{line}");
}

#[test]
fn a_response_with_malformed_chunks_never_looks_complete() {
    for body in [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno field\r\n\r\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhel",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_request();
            connection.send(&response);
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let is_complete = client
            .try_read_response()
            .is_some_and(|response| response.status == 200 && response.is_complete);
        assert!(!is_complete, "{}", body.escape_debug());
        let client = Http2Client::connect(sidecar.address("inbound"));
        let request = Request::get("http://a/").body(()).unwrap();
        let is_complete = client
            .send_request(request, b"", None)
            .is_ok_and(|response| response.status == 200);
        assert!(!is_complete, "{} to HTTP/2", body.escape_debug());
    }
}

#[test]
fn a_response_with_too_many_fields_becomes_a_502_with_a_reason() {
    for (count, status) in [(250, 200), (257, 502)] {
        let backend = ScriptedBackend::responding_with(move |_| {
            let fields: String = (0..count).map(|n| format!("x-{n}: y\r\n")).collect();
            format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n")
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let response = sidecar.get("/");
        assert_eq!(response.status, status, "{count} fields");
        if status == 502 {
            assert!(response.reason().starts_with("upstream_protocol_error"));
        }
    }
}

#[test]
fn a_connection_is_not_reused_if_bytes_follow_the_response() {
    let backend = ScriptedBackend::start(|mut connection| {
        while connection.read_request().is_some() {
            connection.send(concat!(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"
            ));
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    for _ in 0..3 {
        assert_eq!(sidecar.get("/").text(), "ok");
    }
    assert_eq!(backend.connections(), 3);
}

#[test]
fn a_malformed_request_is_rejected_and_never_repaired() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let many_fields: String = (0..257).map(|n| format!("x-{n}: y\r\n")).collect();
    let table = [
        ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /a\tb HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /a\x7f HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\nhost: a\n\n".to_owned(), 400),
        ("GET * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        (
            "GET http://a:81/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
            400,
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\n{many_fields}\r\n"),
            431,
        ),
    ];
    for (request, status) in table {
        let mut client = sidecar.client();
        client.send(&request);
        let name = request.lines().next().unwrap();
        assert_eq!(client.read_response().status, status, "{name}");
    }
    assert_eq!(backend.requests().len(), 0, "the app receives none of them");
    for request in [
        "GET http://Shop:80/ HTTP/1.1\r\nhost: shop\r\n\r\n",
        "GET https://shop/ HTTP/1.1\r\nhost: SHOP:443\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\"{}|^ HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let mut client = sidecar.client();
        client.send(request);
        assert_eq!(client.read_response().status, 200, "{request}");
    }
}

#[test]
fn a_request_body_with_malformed_chunks_ends_the_request_and_the_connection() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    for body in [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno field\r\n\r\n",
    ] {
        let mut client = sidecar.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}"
        ));
        assert_eq!(
            client.read_response().status,
            400,
            "{}",
            body.escape_debug()
        );
        client.wait_for_close();
    }
    assert_eq!(
        backend.requests().len(),
        0,
        "the app receives no complete request"
    );
}

#[test]
fn the_length_of_a_request_is_forwarded_without_leading_zeros() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 010\r\n\r\n0123456789");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(backend.requests()[0].header("content-length"), Some("10"));
}

#[test]
fn a_chunked_response_never_has_a_length_and_an_interim_one_no_framing() {
    let backend = ScriptedBackend::responding_with(|_| {
        concat!(
            "HTTP/1.1 103 Early Hints\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n"
        )
        .to_owned()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let http2 = Http2Client::connect(sidecar.address("inbound")).get("/");
    assert_eq!((http2.status, &http2.body[..]), (200, &b"hello"[..]));
    assert_eq!(http2.header("content-length"), "");
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    let response = client.read_response();
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.body, b"hello");
    client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let interim = client.read_head().expect("a head");
    assert!(
        interim.0 == 103 && !interim.1.contains("chunked"),
        "{interim:?}"
    );
    let response = client.read_response();
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.body, b"hello");
}

#[test]
fn an_empty_line_after_a_body_does_not_count_as_a_request() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {headerTimeout: 100ms, idleTimeout: 500ms}")
            .build(),
    );
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx\r\n";
    let mut client = sidecar.client();
    for _ in 0..2 {
        client.send(post);
        assert_eq!(client.read_response().status, 200);
    }
    let unexpected = client.try_read_response();
    assert!(unexpected.is_none(), "the connection closes as an idle one");
}

#[test]
fn the_number_of_fields_of_a_request_is_limited_for_both_protocols() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {maxHeaders: 20}")
            .build(),
    );
    let http2 = Http2Client::connect(sidecar.address("inbound"));
    // `host` is the first field. HTTP/2 sends its value as a pseudo-header.
    for (added_fields, status) in [(19, 200), (20, 431)] {
        let fields: String = (0..added_fields).map(|n| format!("x-{n}: y\r\n")).collect();
        let mut client = sidecar.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
        let response = client.read_response();
        assert_eq!(response.status, status, "{added_fields} fields and `host`");
        let mut request = Request::get("http://a/");
        for n in 0..=added_fields {
            request = request.header(format!("x-{n}"), "y");
        }
        let request = request.body(()).unwrap();
        let response = http2.send_request(request, b"", None).unwrap();
        assert_eq!(
            response.status, status,
            "{added_fields} fields and one more"
        );
    }
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn the_date_of_the_app_is_forwarded_and_added_only_where_it_is_missing() {
    const DATE: &str = "Tue, 15 Nov 1994 08:12:31 GMT";
    let backend = ScriptedBackend::responding_with(|request| {
        let date = if request.request_line().contains("dated") {
            format!("date: {DATE}\r\n")
        } else {
            String::new()
        };
        format!("HTTP/1.1 200 OK\r\n{date}content-length: 0\r\n\r\n")
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let http2 = Http2Client::connect(sidecar.address("inbound"));
    assert_eq!(sidecar.get("/dated").headers("date"), [DATE]);
    assert_eq!(http2.get("/dated").header("date"), DATE);
    let added = sidecar.get("/");
    assert_eq!(added.headers("date").len(), 1);
    for added in [added.header("date"), Some(http2.get("/").header("date"))] {
        assert!(added.is_some_and(|date| date.ends_with("GMT") && date != DATE));
    }
}

//! Request and response bodies, which are forwarded byte for byte.

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::ResponseGate,
    eventually,
    policy::{PolicyBuilder, policy},
};

/// Returns bytes whose values depend on their position.
fn patterned_bytes(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * 31 + index / 251) % 251).unwrap())
        .collect()
}

/// Starts a sidecar whose listener accepts bodies up to this size.
fn start_with_body_limit(backend: &ScriptedBackend, size: &str) -> Sidecar {
    Sidecar::start(
        &PolicyBuilder::to_backend(backend)
            .listener_fields(format!("limits: {{maxBodyBytes: {size}}}"))
            .build(),
    )
}

fn echo_backend() -> ScriptedBackend {
    ScriptedBackend::start(|mut connection| {
        while let Some(request) = connection.read_request() {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                request.body.len()
            ));
            connection.send(&request.body);
        }
    })
}

#[test]
fn bodies_of_all_sizes_arrive_as_they_were_sent() {
    let backend = echo_backend();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for length in [
        0, 1, 4_095, 4_096, 16_383, 16_385, 65_535, 65_536, 65_537, 1_000_000,
    ] {
        let body = patterned_bytes(length);
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
            ))
            .send(&body);
        let response = client.read_response();
        assert!(
            response.body == body && response.is_complete,
            "{length} bytes"
        );
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn chunked_bodies_arrive_as_they_were_sent() {
    let backend = echo_backend();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let body = patterned_bytes(200_000);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for chunk in body.chunks(7_777) {
        client
            .send(format!("{:x}\r\n", chunk.len()))
            .send(chunk)
            .send("\r\n");
    }
    client.send("0\r\n\r\n");
    let response = client.read_response();
    assert!(
        response.body == body,
        "{} of {} bytes, {}",
        response.body.len(),
        body.len(),
        response.head
    );
    assert_eq!(client.get("/").status, 200, "the connection is reused");
}

#[test]
fn a_streamed_response_is_forwarded_chunk_by_chunk() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for piece in ["one", "two", "three"] {
            backend_gate.wait_for_release();
            connection.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        backend_gate.wait_for_release();
        connection.send("0\r\n\r\n");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(
        client.read_head().unwrap().0,
        200,
        "the head is forwarded before the body"
    );
    for expected in ["3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n"] {
        gate.release_one();
        assert_eq!(client.read_raw(expected.len()), expected.as_bytes());
    }
    gate.release_one();
    assert_eq!(client.read_raw(5), b"0\r\n\r\n");
}

#[test]
fn request_and_response_bodies_stream_concurrently() {
    let backend = ScriptedBackend::start(|mut connection| {
        let head = connection.read_head().unwrap();
        assert!(
            head.to_ascii_lowercase().contains("content-length: 400000"),
            "{head}"
        );
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n");
        for _ in 0..40 {
            let piece = connection.read_exact(10_000).unwrap();
            connection.send(piece);
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let body = patterned_bytes(400_000);
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 400000\r\n\r\n")
        .send(&body[..10_000]);
    let (status, head) = client.read_head().unwrap();
    assert_eq!(status, 200);
    let mut echoed = client.read_raw(10_000);
    for piece in body[10_000..].chunks(10_000) {
        client.send(piece);
        echoed.extend(client.read_raw(10_000));
    }
    assert!(echoed == body, "{head}");
}

/// The backend responds and stops reading. A proxy that must write before it reads would hang.
#[test]
fn a_response_before_the_end_of_the_request_body_is_forwarded() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send("HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nno!");
        connection.stay_open_without_reading();
    });
    let sidecar = start_with_body_limit(&backend, "100Mi");
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n");
    let piece = patterned_bytes(100_000);
    let mut sent_pieces = 0;
    while sent_pieces < 500 && client.try_send(&piece) {
        sent_pieces += 1;
        if sent_pieces == 1 {
            assert_eq!(client.read_response().text(), "no!");
        }
    }
    client.wait_for_close();
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
}

#[test]
fn a_truncated_response_is_forwarded_as_incomplete() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_request();
            connection.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n"));
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let response = sidecar.get("/");
        assert!(
            response.status == 200 && !response.is_complete,
            "{head}: {response:?}"
        );
        assert_eq!(sidecar.access_log_lines(1)[0]["reason"], "upstream_reset");
    }
}

#[test]
fn a_client_disconnect_releases_the_request_and_its_connection() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    for disconnect in [
        |client: Client| drop(client),
        |client: Client| client.reset(),
        |mut client: Client| client.shutdown_write(),
    ] {
        let sent_before = backend.requests().len();
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("the request has arrived", || {
            backend.requests().len() > sent_before
        });
        assert_eq!(sidecar.in_flight(), 1);
        disconnect(client);
        eventually("nothing is in flight", || sidecar.in_flight() == 0);
    }
    let log = sidecar.access_log_lines(3);
    assert!(
        log.iter()
            .all(|line| line["reason"] == "client_closed" && line["status"] == 0),
        "{log:?}"
    );
    assert_eq!(sidecar.admin_json("/api/v1/backends")[0]["connections"], 0);
}

#[test]
fn a_client_disconnect_during_the_request_body_releases_the_request() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf");
    eventually("the request is in flight", || sidecar.in_flight() == 1);
    drop(client);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.access_log_lines(1)[0]["reason"], "client_closed");
}

#[test]
fn a_body_over_max_body_bytes_is_rejected_by_its_length_or_while_it_streams() {
    let backend = echo_backend();
    let sidecar = start_with_body_limit(&backend, "1Ki");
    let exact = sidecar
        .client()
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1024\r\n\r\n")
        .send(patterned_bytes(1024))
        .read_response();
    assert_eq!(exact.status, 200);
    let by_length = sidecar
        .client()
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n")
        .read_response();
    assert_eq!(
        (by_length.status, by_length.reason()),
        (413, "body_too_large")
    );
    let mut client = sidecar.client();
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n400\r\n")
        .send(patterned_bytes(1024))
        .send("\r\n1\r\nx\r\n");
    let while_streaming = client.read_response();
    assert_eq!(
        (while_streaming.status, while_streaming.reason()),
        (413, "body_too_large")
    );
    client.wait_for_close();
    assert_eq!(
        backend.requests().len(),
        1,
        "no rejected request reaches the backend completely"
    );
}

#[test]
fn a_large_response_is_streamed_completely() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        let body = vec![b'x'; 1 << 20];
        connection.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            64 << 20
        ));
        for _ in 0..64 {
            if !connection.send(&body) {
                return;
            }
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let (status, head) = client.read_head().unwrap();
    let response = client.read_body(status, head, true);
    assert_eq!(
        (response.body.len(), response.is_complete),
        (64 << 20, true)
    );
}

/// The body exceeds the socket buffers. The sidecar must continue the upload while the response
/// arrives.
#[test]
fn a_response_during_the_upload_does_not_stop_the_upload() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        assert!(connection.read_exact(8_000_000).is_some());
        connection.send("ok");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n")
        .send(patterned_bytes(8_000_000));
    assert_eq!(client.read_response().text(), "ok");
}

//! Bodies in both directions, without losing or inventing a byte.

use crate::support::{Backend, Client, Sidecar, backend::Gate, eventually, sidecar::policy};

/// Bytes that show where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * 31 + index / 251) % 251).unwrap())
        .collect()
}

fn echo() -> Backend {
    Backend::start(|mut connection| {
        while let Some(request) = connection.request() {
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
    let backend = echo();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for length in [
        0, 1, 4_095, 4_096, 16_383, 16_385, 65_535, 65_536, 65_537, 1_000_000,
    ] {
        let body = pattern(length);
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
            ))
            .send(&body);
        let answer = client.answer();
        assert!(answer.body == body && answer.is_complete, "{length} bytes");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn chunked_bodies_arrive_as_they_were_sent() {
    let backend = echo();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let body = pattern(200_000);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for chunk in body.chunks(7_777) {
        client
            .send(format!("{:x}\r\n", chunk.len()))
            .send(chunk)
            .send("\r\n");
    }
    client.send("0\r\n\r\n");
    let answer = client.answer();
    assert!(
        answer.body == body,
        "{} of {} bytes, {}",
        answer.body.len(),
        body.len(),
        answer.head
    );
    assert_eq!(client.get("/").status, 200, "the connection goes on");
}

#[test]
fn a_streamed_answer_comes_piece_by_piece() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for piece in ["one", "two", "three"] {
            there.pass();
            connection.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        there.pass();
        connection.send("0\r\n\r\n");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(
        client.head().unwrap().0,
        200,
        "the head does not wait for the body"
    );
    for expected in ["3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n"] {
        gate.open();
        assert_eq!(client.raw(expected.len()), expected.as_bytes());
    }
    gate.open();
    assert_eq!(client.raw(5), b"0\r\n\r\n");
}

#[test]
fn both_directions_flow_at_once() {
    let backend = Backend::start(|mut connection| {
        let head = connection.head().unwrap();
        assert!(
            head.to_ascii_lowercase().contains("content-length: 400000"),
            "{head}"
        );
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n");
        for _ in 0..40 {
            let piece = connection.exactly(10_000).unwrap();
            connection.send(piece);
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let body = pattern(400_000);
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 400000\r\n\r\n")
        .send(&body[..10_000]);
    let (status, head) = client.head().unwrap();
    assert_eq!(status, 200);
    let mut echoed = client.raw(10_000);
    for piece in body[10_000..].chunks(10_000) {
        client.send(piece);
        echoed.extend(client.raw(10_000));
    }
    assert!(echoed == body, "{head}");
}

/// The backend answers and reads no more; a proxy that must write before it reads would hang for ever.
#[test]
fn an_answer_before_the_body_is_finished_gets_through() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nno!");
        // Neither reads nor closes.
        connection.wait_for_nothing();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {maxBodyBytes: 100Mi}",
    ));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n");
    let piece = pattern(100_000);
    let mut sent = 0;
    while sent < 500 && client.try_send(&piece) {
        sent += 1;
        if sent == 1 {
            assert_eq!(client.answer().text(), "no!");
        }
    }
    assert!(client.is_closed());
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
}

#[test]
fn an_answer_that_breaks_off_is_broken_off_and_never_completed() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let backend = Backend::start(move |mut connection| {
            connection.request();
            connection.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n"));
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let answer = sidecar.get("/");
        assert!(
            answer.status == 200 && !answer.is_complete,
            "{head}: {answer:?}"
        );
        assert_eq!(sidecar.log(1)[0]["reason"], "upstream_reset");
    }
}

#[test]
fn a_client_that_leaves_frees_everything() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    for leave in [
        |client: Client| drop(client),
        |client: Client| client.reset(),
        |mut client: Client| client.shutdown_write(),
    ] {
        let before = backend.seen().len();
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("the request has arrived", || backend.seen().len() > before);
        assert_eq!(sidecar.in_flight(), 1);
        leave(client);
        eventually("nothing is in flight", || sidecar.in_flight() == 0);
    }
    let log = sidecar.log(3);
    assert!(
        log.iter()
            .all(|line| line["reason"] == "client_closed" && line["status"] == 0),
        "{log:?}"
    );
    assert_eq!(sidecar.json("/api/v1/backends")[0]["connections"], 0);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_frees_everything() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf");
    eventually("it is in flight", || sidecar.in_flight() == 1);
    drop(client);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.log(1)[0]["reason"], "client_closed");
}

#[test]
fn a_body_over_the_bound_is_refused_before_or_while_it_comes() {
    let backend = echo();
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {maxBodyBytes: 1Ki}",
    ));
    let exact = sidecar
        .client()
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1024\r\n\r\n")
        .send(pattern(1024))
        .answer();
    assert_eq!(exact.status, 200);
    let announced = sidecar
        .client()
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n")
        .answer();
    assert_eq!(
        (announced.status, announced.reason()),
        (413, "body_too_large")
    );
    let mut client = sidecar.client();
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n400\r\n")
        .send(pattern(1024))
        .send("\r\n1\r\nx\r\n");
    let counted = client.answer();
    assert_eq!((counted.status, counted.reason()), (413, "body_too_large"));
    assert!(client.is_closed());
    assert_eq!(
        backend.seen().len(),
        1,
        "neither reached the app as a whole"
    );
}

#[test]
fn a_slow_reader_holds_no_more_than_a_piece() {
    let backend = Backend::start(|mut connection| {
        connection.request();
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
    let (status, head) = client.head().unwrap();
    let answer = client.body(status, head, true);
    assert_eq!((answer.body.len(), answer.is_complete), (64 << 20, true));
}

/// Both are queued at once and more than a socket takes: the rest of the request must go on while the answer comes.
#[test]
fn an_answer_that_begins_while_the_request_is_still_queued_does_not_stop_it() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        assert!(connection.exactly(8_000_000).is_some());
        connection.send("ok");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n")
        .send(pattern(8_000_000));
    assert_eq!(client.answer().text(), "ok");
}

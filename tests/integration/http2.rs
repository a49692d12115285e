//! HTTP/2 with clients and backends, in every combination with HTTP/1.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::{ResponseGate, ok_response, response},
    eventually, eventually_async,
    http2::{Http2Backend, Http2Client, read_body_and_trailers, read_response},
    policy::{PolicyBuilder, policy},
};

fn start_http2_sidecar(backend: &Http2Backend, sections: &str) -> Sidecar {
    Sidecar::start(
        &PolicyBuilder::new(&[backend.address])
            .backend_fields("protocol: HTTP2")
            .sections(sections)
            .build(),
    )
}

/// Starts a sidecar with these fields of the listener.
fn start_with_listener_fields(backend: &ScriptedBackend, fields: &str) -> Sidecar {
    Sidecar::start(
        &PolicyBuilder::to_backend(backend)
            .listener_fields(fields)
            .build(),
    )
}

fn connect_client(sidecar: &Sidecar) -> Http2Client {
    Http2Client::connect(sidecar.address("inbound"))
}

#[test]
fn a_head_that_is_too_large_fails_its_stream_and_no_other() {
    let (backend, gate) = ScriptedBackend::gated_with("served");
    let sidecar = start_with_listener_fields(&backend, "limits: {maxHeaderBytes: 8Ki}");
    let client = connect_client(&sidecar);
    let other = client.sender.clone();
    let request = Request::get("http://test/").body(()).unwrap();
    let other = client.runtime.spawn(async move {
        let (response, _) = other.ready().await?.send_request(request, true)?;
        read_response(response.await?).await
    });
    eventually("the other request is at the app", || {
        backend.requests().len() == 1
    });
    for kibibytes in [9, 65, 150, 300, 900] {
        let request = Request::get("http://test/")
            .header("x-large", "a".repeat(kibibytes << 10))
            .body(())
            .unwrap();
        let response = client.send_request(request, b"", None).unwrap();
        assert_eq!(
            (response.status, response.header("x-outrigger-reason")),
            (431, "header_too_large"),
            "{kibibytes} KiB"
        );
    }
    gate.release_one();
    let response = client.runtime.block_on(other).unwrap().unwrap();
    assert_eq!(&response.body[..], b"served");
}

#[test]
fn the_limit_of_the_head_is_the_same_for_both_protocols() {
    let backend = ScriptedBackend::healthy();
    let sidecar = start_with_listener_fields(&backend, "limits: {maxHeaderBytes: 8Ki}");
    let head = "GET / HTTP/1.1\r\nhost: test\r\nx: ".len() + "\r\n\r\n".len();
    for (size, expected) in [(8 << 10, 200), ((8 << 10) + 1, 431)] {
        let value = "a".repeat(size - head);
        let mut http1 = sidecar.client();
        http1.send(format!(
            "GET / HTTP/1.1\r\nhost: test\r\nx: {value}\r\n\r\n"
        ));
        assert_eq!(http1.read_response().status, expected, "HTTP/1, {size}");
        let request = Request::get("http://test/").header("x", &value);
        let client = connect_client(&sidecar);
        let response = client.send_request(request.body(()).unwrap(), b"", None);
        assert_eq!(response.unwrap().status, expected, "HTTP/2, {size}");
    }
}

#[test]
fn an_http2_client_reaches_an_http1_app() {
    let backend = ScriptedBackend::responding_with(|request| {
        ok_response(&format!(
            "{} {}",
            request.request_line(),
            String::from_utf8_lossy(&request.body)
        ))
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = connect_client(&sidecar);
    let request = Request::post("http://pay.shop/v1?a=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let response = client.send_request(request, b"body", None).unwrap();
    assert_eq!(
        (response.status, &response.body[..]),
        (200, &b"POST /v1?a=1 HTTP/1.1 body"[..])
    );
    assert_eq!(response.header("via"), "1.1 outrigger");
    let forwarded = &backend.requests()[0];
    assert_eq!(
        (
            forwarded.header("host"),
            forwarded.header("cookie"),
            forwarded.header("te")
        ),
        (Some("pay.shop"), Some("a=1; b=2"), Some("trailers"))
    );
    assert_eq!(
        (
            forwarded.header("via"),
            forwarded.header("transfer-encoding")
        ),
        (Some("2 outrigger"), Some("chunked"))
    );
    let empty = client.get("/");
    assert_eq!(&empty.body[..], b"GET / HTTP/1.1 ");
    assert_eq!(sidecar.access_log_lines(2)[0]["host"], "pay.shop");
}

#[test]
fn an_http1_client_reaches_an_http2_app() {
    let backend = Http2Backend::echoing();
    let sidecar = start_http2_sidecar(&backend, "");
    let mut client = sidecar.client();
    assert_eq!(client.post("/v1?a=1", "body").text(), "body");
    client.send(
        "POST / HTTP/1.1\r\nhost: pay.shop\r\ntransfer-encoding: chunked\r\n\
         connection: x-private\r\nx-private: 1\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    let response = client.read_response();
    assert_eq!(
        (response.text().as_str(), response.header("via")),
        ("abcde", Some("2 outrigger"))
    );
    let heads = backend.request_heads();
    assert_eq!(
        (heads[0].uri.to_string().as_str(), heads[0].method.as_str()),
        ("http://test/v1?a=1", "POST")
    );
    let forwarded = &heads[1];
    assert_eq!(forwarded.uri.authority().unwrap().as_str(), "pay.shop");
    for removed in ["host", "connection", "transfer-encoding", "x-private"] {
        assert!(!forwarded.headers.contains_key(removed), "{removed}");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn trailers_are_forwarded_in_both_directions() {
    let backend = Http2Backend::echoing();
    let sidecar = start_http2_sidecar(&backend, "");
    let trailers: HeaderMap = [("x-sum".parse().unwrap(), "7".parse().unwrap())]
        .into_iter()
        .collect();
    let response = connect_client(&sidecar)
        .send_request(
            Request::post("http://test/").body(()).unwrap(),
            b"body",
            Some(trailers),
        )
        .unwrap();
    assert_eq!(
        (
            &response.body[..],
            response
                .trailers
                .unwrap()
                .get("x-sum")
                .unwrap()
                .to_str()
                .unwrap()
        ),
        (&b"body"[..], "7")
    );
}

#[test]
fn many_requests_share_few_connections() {
    let backend = Http2Backend::echoing();
    let sidecar = start_http2_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        let requests = (0..200).map(|number| {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut sender = sender.ready().await.unwrap();
                let (response, mut stream) = sender
                    .send_request(Request::post("http://test/").body(()).unwrap(), false)
                    .unwrap();
                stream
                    .send_data(Bytes::from(format!("{number}")), true)
                    .unwrap();
                assert_eq!(
                    read_response(response.await.unwrap()).await.unwrap().body,
                    format!("{number}")
                );
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap();
        }
    });
    assert_eq!(backend.request_heads().len(), 200);
    assert!(
        backend.connections() <= 4,
        "{} connections",
        backend.connections()
    );
}

#[test]
fn bodies_over_the_flow_control_window_stream_in_both_directions() {
    let backend = Http2Backend::start(|mut call| async move {
        let mut stream = call
            .responder
            .send_response(Response::new(()), false)
            .unwrap();
        // The backend echoes each chunk before it reads the next one.
        while let Some(Ok(chunk)) = call.body.data().await {
            _ = call.body.flow_control().release_capacity(chunk.len());
            stream.send_data(chunk, false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let body: Vec<u8> = (0..3_000_000_u32)
        .map(|number| number.to_be_bytes()[3])
        .collect();
    let echoed = connect_client(&sidecar).post("/", &body);
    assert!(
        echoed.body == body,
        "{} of {} bytes",
        echoed.body.len(),
        body.len()
    );
    // The same holds for an HTTP/1 client.
    let mut plain = sidecar.client();
    plain
        .send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
            300_000
        ))
        .send(&body[..300_000]);
    assert!(plain.read_response().body == body[..300_000]);
}

#[test]
fn a_body_chunk_is_forwarded_as_it_arrives() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = Http2Backend::start(move |mut call| {
        let gate = backend_gate.clone();
        async move {
            let mut stream = call
                .responder
                .send_response(Response::new(()), false)
                .unwrap();
            stream.send_data("first".into(), false).unwrap();
            tokio::task::spawn_blocking(move || gate.wait_for_release())
                .await
                .unwrap();
            stream.send_data("second".into(), true).unwrap();
        }
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        let (response, _) = sender
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(
            body.data().await.unwrap().unwrap(),
            "first",
            "the first chunk arrives before the backend sends the second"
        );
        gate.release_one();
        assert_eq!(body.data().await.unwrap().unwrap(), "second");
    });
}

#[test]
fn a_client_reset_cancels_the_request_and_keeps_the_backend_connection() {
    let backend = Http2Backend::start(|mut call| async move {
        // Waits until the stream is reset.
        _ = std::future::poll_fn(|context| call.responder.poll_reset(context)).await;
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        let (response, stream) = sender
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        tokio::task::block_in_place(|| {
            eventually("the request is in flight", || sidecar.in_flight() == 1)
        });
        drop((response, stream));
    });
    eventually("the request is cancelled", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.access_log_lines(1)[0]["reason"], "client_closed");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_refused_stream_is_retried_for_every_method() {
    let count = AtomicUsize::new(0);
    let backend = Http2Backend::start(move |mut call| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if is_first {
                call.responder.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                let (body, _) = read_body_and_trailers(&mut call.body).await;
                call.responder
                    .send_response(Response::new(()), false)
                    .unwrap()
                    .send_data(body, true)
                    .unwrap();
            }
        }
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let response = connect_client(&sidecar).post("/pay", b"once");
    assert_eq!((response.status, &response.body[..]), (200, &b"once"[..]));
    assert_eq!(backend.request_heads().len(), 2);
    assert_eq!(
        backend.request_heads()[1].headers["x-outrigger-attempt"],
        "1",
        "a refused stream does not count as an attempt"
    );
}

#[test]
fn a_reset_stream_that_may_have_been_processed_is_not_retried() {
    let backend = Http2Backend::start(|mut call| async move {
        call.responder.send_reset(h2::Reason::INTERNAL_ERROR)
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let response = connect_client(&sidecar).post("/pay", b"once");
    assert_eq!(
        (response.status, response.header("x-outrigger-reason")),
        (502, format!("upstream_reset:{}", backend.address).as_str())
    );
    assert_eq!(backend.request_heads().len(), 1);
    assert_eq!(
        backend.connections(),
        1,
        "the reset does not close the connection"
    );
}

#[test]
fn a_truncated_response_resets_the_stream() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = connect_client(&sidecar);
    let error = client
        .send_request(Request::get("http://test/").body(()).unwrap(), b"", None)
        .unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(sidecar.access_log_lines(1)[0]["reason"], "upstream_reset");
}

#[test]
fn rejections_and_bodiless_responses_end_their_stream_at_once() {
    let backend =
        ScriptedBackend::responding_with(|_| "HTTP/1.1 204 No Content\r\n\r\n".to_owned());
    let policy = PolicyBuilder::to_backend(&backend)
        .route_fields("matches: [{path: {value: /here}}]")
        .build();
    let sidecar = Sidecar::start(&policy);
    let client = connect_client(&sidecar);
    assert_eq!(client.get("/here").status, 204);
    let rejection = client.get("/elsewhere");
    assert_eq!(
        (rejection.status, rejection.header("x-outrigger-reason")),
        (404, "no_route")
    );
    assert!(rejection.body.starts_with(b"{"));
    let head = client
        .send_request(
            Request::head("http://test/elsewhere").body(()).unwrap(),
            b"",
            None,
        )
        .unwrap();
    assert_eq!((head.status, head.body.len()), (404, 0));
}

#[test]
fn a_listener_accepts_only_its_configured_protocol() {
    let backend = ScriptedBackend::healthy();
    let start_with_protocol =
        |protocol: &str| start_with_listener_fields(&backend, &format!("protocol: {protocol}"));
    let auto_sidecar = start_with_protocol("Auto");
    assert_eq!(
        (
            connect_client(&auto_sidecar).get("/").status,
            auto_sidecar.get("/").status
        ),
        (200, 200)
    );
    let http1_sidecar = start_with_protocol("HTTP1");
    assert_eq!(http1_sidecar.get("/").status, 200);
    let mut preface = http1_sidecar.client();
    preface.try_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(preface.read_response().status, 400);
    let http2_sidecar = start_with_protocol("HTTP2");
    assert_eq!(connect_client(&http2_sidecar).get("/").status, 200);
    let mut plain = http2_sidecar.client();
    plain.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(
        plain
            .try_read_response()
            .is_none_or(|response| response.status == 0),
        "an HTTP/2 listener sends no HTTP/1 response"
    );
}

#[test]
fn an_auto_listener_survives_short_silent_and_partial_prefaces() {
    let backend = ScriptedBackend::healthy();
    let sidecar = start_with_listener_fields(&backend, "limits: {headerTimeout: 300ms}");
    let silent: Vec<Client> = (0..20).map(|_| sidecar.client()).collect();
    // This request is shorter than the preface.
    let mut short = sidecar.client();
    assert_eq!(
        short.send("GET / HTTP/1.0\r\n\r\n").read_response().status,
        200
    );
    // This request arrives byte by byte and shares its first bytes with the preface.
    let mut slow = sidecar.client();
    for byte in "PROPFIND / HTTP/1.1\r\nhost: a\r\n\r\n".bytes() {
        slow.send([byte]);
    }
    assert_eq!(slow.read_response().status, 200);
    let mut stalled = sidecar.client();
    stalled.send("PRI * HT");
    // A partial preface times out with the header timeout.
    stalled.wait_for_close();
    let mut half_closed = sidecar.client();
    half_closed.send("PRI");
    half_closed.shutdown_write();
    half_closed.wait_for_close();
    assert_eq!(sidecar.get("/").status, 200);
    drop(silent);
}

#[test]
fn a_rapid_reset_client_is_disconnected() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.responder.poll_reset(context)).await;
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    let is_disconnected = client.runtime.block_on(async {
        for _ in 0..5_000 {
            let Ok(mut ready) = sender.clone().ready().await else {
                return true;
            };
            let Ok((response, mut stream)) =
                ready.send_request(Request::get("http://test/").body(()).unwrap(), false)
            else {
                return true;
            };
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
            tokio::task::yield_now().await;
        }
        false
    });
    assert!(
        is_disconnected,
        "the client is still connected after 5000 resets"
    );
    eventually("no request is in flight", || sidecar.in_flight() == 0);
    assert_eq!(
        status_for_a_new_client(&sidecar),
        404,
        "other clients are served"
    );
}

/// Returns the status for a new client. Its request matches no route, so no backend receives it.
fn status_for_a_new_client(sidecar: &Sidecar) -> u16 {
    let policy = PolicyBuilder::new(&[ScriptedBackend::unused_address()])
        .route_fields("matches: [{path: {value: /here}}]")
        .build();
    sidecar.reload(&policy);
    connect_client(sidecar).get("/elsewhere").status
}

#[test]
fn concurrent_streams_and_header_bytes_are_bounded() {
    let backend = ScriptedBackend::responding_with(|_| response(200, "x"));
    let limits = "limits: {maxConcurrentStreams: 3, maxHeaderBytes: 4Ki}";
    let sidecar = start_with_listener_fields(&backend, limits);
    let client = connect_client(&sidecar);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.sender.current_max_send_streams(), 3);
    let long = Request::get("http://test/")
        .header("x-long", "y".repeat(8_000))
        .body(())
        .unwrap();
    let rejection = client.send_request(long, b"", None).unwrap();
    assert_eq!(rejection.status, 431);
}

#[test]
fn a_draining_instance_sends_goaway_and_completes_streams_in_flight() {
    let (backend, gate) = ScriptedBackend::gated_with("late");
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  lifecycle: {drain: {delay: 10ms, quietPeriod: 10ms, timeout: 15s}}\n",
    ));
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    let response = client.runtime.block_on(async {
        let (response, _) = sender
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        tokio::task::block_in_place(|| {
            eventually("the request is in flight", || sidecar.in_flight() == 1);
            sidecar.call_admin("POST", "/api/v1/drain");
        });
        eventually_async("the connection accepts no more requests", || async {
            let Ok(mut ready) = sender.clone().ready().await else {
                return true;
            };
            let is_rejected = ready
                .send_request(Request::get("http://test/").body(()).unwrap(), true)
                .is_err();
            if !is_rejected {
                gate.release_one();
            }
            is_rejected
        })
        .await;
        gate.release_one();
        read_response(response.await.unwrap()).await.unwrap()
    });
    assert_eq!((response.status, &response.body[..]), (200, &b"late"[..]));
}

#[test]
fn clients_that_do_not_read_do_not_block_others_on_a_shared_connection() {
    let backend = Http2Backend::start(|mut call| async move {
        let size = if call.head.uri.path() == "/large" {
            1 << 20
        } else {
            2
        };
        call.responder
            .send_response(Response::new(()), false)
            .unwrap()
            .send_data(vec![b'x'; size].into(), true)
            .unwrap();
        // The call stays open until the client closes the stream.
        _ = call.body.data().await;
    });
    let sidecar = start_http2_sidecar(&backend, "");
    let idle: Vec<_> = (0..24)
        .map(|_| {
            let client = connect_client(&sidecar);
            let sender = client.sender.clone();
            let response = client.runtime.block_on(async {
                let (response, _) = sender
                    .ready()
                    .await
                    .unwrap()
                    .send_request(Request::get("http://test/large").body(()).unwrap(), true)
                    .unwrap();
                response.await.unwrap()
            });
            (client, response)
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(&connect_client(&sidecar).get("/small").body[..], b"xx");
    }
    drop(idle);
}

#[test]
fn an_idle_client_is_disconnected_even_if_it_does_not_respond() {
    let backend = ScriptedBackend::healthy();
    let sidecar = start_with_listener_fields(&backend, "limits: {idleTimeout: 50ms}");
    let mut unresponsive = sidecar.client();
    // The client sends the preface and empty settings, and then neither acknowledges nor responds.
    unresponsive.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    unresponsive.wait_for_close();
    eventually("its connection is no longer counted", || {
        sidecar.metric(r#"outrigger_connections{listener="inbound"}"#) == 0.0
    });
}

#[test]
fn an_unresponsive_connection_is_not_reused() {
    // The backend accepts the request but sends nothing, like a network that drops packets.
    let backend = Http2Backend::start(|call| async move {
        if call.head.uri.path() == "/silence" {
            crate::support::simulate_delay(Duration::from_secs(2));
        }
        let mut respond = call.responder;
        respond.send_response(Response::new(()), true).unwrap();
    });
    let sidecar = start_http2_sidecar(
        &backend,
        "  defaults: {timeouts: {request: 100ms, backendRequest: 100ms}}\n",
    );
    let client = connect_client(&sidecar);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.get("/silence").status, 504);
    eventually("a request is sent on a new connection", || {
        client.get("/");
        backend.connections() >= 2
    });
}

#[test]
fn an_idle_connection_gives_its_permit_to_a_connection_that_waits() {
    let (first, second) = (Http2Backend::echoing(), Http2Backend::echoing());
    let policy = PolicyBuilder::new(&[first.address, second.address])
        .backend_fields("protocol: HTTP2, loadBalancer: {type: RoundRobin}")
        .sections("  defaults: {connectionLimits: {maxConnections: 1}}\n")
        .build();
    let sidecar = Sidecar::start(&policy);
    for _ in 0..20 {
        // The connections of both workers compete for the permit. A connection becomes idle shortly
        // after its response.
        eventually("a connection permit is free", || {
            sidecar.client().post("/", "body").status == 200
        });
    }
    assert!(first.connections() > 1 && second.connections() > 1);
}

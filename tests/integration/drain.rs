//! A drain loses no request: requests in flight complete, and late requests are rejected
//! unprocessed.

use std::time::{Duration, Instant};

use outrigger::{resilience::lifecycle::Stage, state::instance::lifecycle::ExitReason};

use crate::support::{
    Client, ReceivedResponse, ScriptedBackend, Sidecar,
    backend::ResponseGate,
    eventually, eventually_async,
    http2::{Http2Backend, Http2Client, grpc_message, read_body_and_trailers},
    policy::{PolicyBuilder, policy},
};

const SHORT_DELAY: &str = "100ms";
const LONG_TIMEOUT: &str = "20s";

/// Returns the section `lifecycle` with a drain of this delay and timeout.
fn drain_section(delay: &str, timeout: &str) -> String {
    format!("  lifecycle: {{drain: {{delay: {delay}, quietPeriod: 20ms, timeout: {timeout}}}}}\n")
}

/// Returns a policy with a drain without delay, and with an outbound listener to the same backend.
fn policy_with_outbound_listener(backend: &ScriptedBackend) -> String {
    PolicyBuilder::to_backend(backend)
        .listener("outbound", "direction: Outbound, address: \"127.0.0.1:0\"")
        .route("out", "listeners: [outbound], backendRefs: [{name: app}]")
        .sections(&drain_section("0s", LONG_TIMEOUT))
        .build()
}

#[track_caller]
fn assert_announces_drain(response: &ReceivedResponse) {
    assert_eq!(
        (
            response.status,
            response.header("connection"),
            response.header("x-outrigger-draining")
        ),
        (200, Some("close"), Some("1; ttl=25"))
    );
}

#[test]
fn a_draining_instance_is_unready_serves_new_requests_and_waits_for_those_in_flight() {
    let (backend, gate) = ScriptedBackend::gated();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &drain_section(SHORT_DELAY, LONG_TIMEOUT),
    ));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the backend receives the request", || {
        backend.requests().len() == 1
    });
    let mut idle = sidecar.client();
    assert_eq!(idle.get("/").header("connection"), Some("keep-alive"));

    sidecar.app().drain();
    eventually("the instance is unready", || {
        sidecar.call_admin("GET", "/readyz").status == 503
    });
    assert_eq!(sidecar.call_admin("GET", "/livez").status, 200);
    assert_eq!(
        sidecar.admin_json("/api/v1/status")["lifecycle"],
        "draining"
    );
    assert_announces_drain(&idle.get("/"));
    idle.wait_for_close();
    eventually("the drain delay has ended", || {
        sidecar.app().state().drain.stage() > Stage::Announcing
    });
    assert_eq!(
        sidecar.get("/").text(),
        "done",
        "a client that has not seen the drain yet is served"
    );
    assert_eq!(
        sidecar.call_admin("POST", "/api/v1/drain").status,
        202,
        "a second drain request has no effect"
    );

    let app = sidecar.app.take().unwrap();
    let waiting = std::thread::spawn(move || app.wait());
    assert!(!waiting.is_finished());
    gate.release_one();
    let last = slow.read_response();
    let ended = Instant::now();
    assert_eq!(
        (last.text().as_str(), last.header("connection")),
        ("done", Some("close"))
    );
    assert_eq!(
        waiting.join().unwrap(),
        ExitReason::Drained { is_clean: true }
    );
    assert!(
        ended.elapsed() < Duration::from_millis(200),
        "ended {:?} after the last response",
        ended.elapsed()
    );
}

#[test]
fn a_drained_instance_serves_outbound_requests_and_rejects_late_inbound_ones_unprocessed() {
    let backend = ScriptedBackend::healthy();
    let mut sidecar = Sidecar::start(&policy_with_outbound_listener(&backend));
    let (mut idle, admin) = (sidecar.client(), sidecar.app().admin_address());
    idle.get("/");
    let waiting = std::thread::spawn(move || Client::connect(admin).get("/drained").text());
    assert_eq!(sidecar.call_admin("POST", "/api/v1/drain").status, 202);
    assert_eq!(waiting.join().unwrap(), "drained\n");
    assert_eq!(sidecar.admin_json("/api/v1/status")["lifecycle"], "drained");
    let requests_before = backend.requests().len();
    for rejected in [idle.post("/", "pay"), sidecar.client().get("/")] {
        assert_eq!(
            (
                rejected.status,
                rejected.reason(),
                rejected.header("connection"),
                rejected.header("retry-after")
            ),
            (503, "draining", Some("close"), Some("1"))
        );
        assert!(
            rejected
                .header("x-outrigger-draining")
                .unwrap()
                .starts_with("1; ttl=")
        );
    }
    assert_eq!(
        backend.requests().len(),
        requests_before,
        "the backend receives no rejected request"
    );
    let outbound = Client::connect(sidecar.address("outbound")).get("/");
    assert_eq!(
        (
            outbound.status,
            outbound.header("connection"),
            outbound.header("x-outrigger-draining")
        ),
        (200, Some("keep-alive"), None)
    );
    assert_eq!(
        sidecar.call_admin("POST", "/quitquitquit").text(),
        "quitting\n"
    );
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
}

#[test]
fn an_instance_ends_when_no_outbound_request_is_in_flight_after_the_drain() {
    let (backend, gate) = ScriptedBackend::gated();
    let mut sidecar = Sidecar::start(&policy_with_outbound_listener(&backend));
    let mut outbound = Client::connect(sidecar.address("outbound"));
    outbound.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the backend receives the request", || {
        backend.requests().len() == 1
    });
    sidecar.app().drain();
    eventually("no inbound request is in flight", || {
        sidecar.admin_json("/api/v1/status")["lifecycle"] == "drained"
    });
    let app = sidecar.app.take().unwrap();
    let waiting = std::thread::spawn(move || app.wait());
    assert!(!waiting.is_finished());
    gate.release_one();
    assert_eq!(outbound.read_response().text(), "done");
    assert_eq!(
        waiting.join().unwrap(),
        ExitReason::Drained { is_clean: true }
    );
}

#[test]
fn quitquitquit_skips_the_drain_delay() {
    let backend = ScriptedBackend::healthy();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &drain_section("15s", LONG_TIMEOUT),
    ));
    assert_eq!(sidecar.call_admin("GET", "/quitquitquit").status, 405);
    let started_at = Instant::now();
    assert_eq!(sidecar.call_admin("POST", "/quitquitquit").status, 200);
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    assert!(started_at.elapsed() < Duration::from_secs(10));
}

#[test]
fn http2_connections_receive_goaway_at_once_and_their_streams_complete() {
    let (backend, gate) = ScriptedBackend::gated();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &drain_section(SHORT_DELAY, LONG_TIMEOUT),
    ));
    let (runtime, address) = (
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
        sidecar.address("inbound"),
    );
    let outcome = runtime.block_on(async {
        let (mut sender, connection) =
            h2::client::handshake(tokio::net::TcpStream::connect(address).await.unwrap())
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        let (response, _) = sender
            .send_request(http::Request::get("http://a/slow").body(()).unwrap(), true)
            .unwrap();
        eventually_async("the backend receives the request", || async {
            backend.requests().len() == 1
        })
        .await;
        sidecar.app().drain();
        eventually_async("the connection accepts no more streams", || {
            let sender = sender.clone();
            async { sender.ready().await.is_err() }
        })
        .await;
        gate.release_one();
        let response = response.await.unwrap();
        drop(sender);
        (response.status(), connection.await.unwrap().is_ok())
    });
    assert_eq!(
        outcome,
        (http::StatusCode::OK, true),
        "the stream and the connection end without an error"
    );
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
}

#[test]
fn a_drain_ends_at_its_timeout() {
    let (backend, _gate) = ScriptedBackend::gated();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &drain_section(SHORT_DELAY, "150ms"),
    ));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the backend receives the request", || {
        backend.requests().len() == 1
    });
    sidecar.app().drain();
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: false }
    );
}

#[test]
fn an_idle_instance_ends_right_after_the_drain_delay() {
    let backend = ScriptedBackend::healthy();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &drain_section("0s", LONG_TIMEOUT),
    ));
    let mut idle = sidecar.client();
    idle.get("/");
    sidecar.app().drain();
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    idle.wait_for_close();
}

/// Drain that closes streams as soon as it begins.
const IMMEDIATE_STREAM_SHUTDOWN: &str =
    "  lifecycle: {drain: {delay: 0s, quietPeriod: 20ms, softTimeout: 0s, timeout: 20s}}\n";

#[test]
fn a_drain_closes_a_websocket_with_1001_between_two_frames() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        );
        // Half a frame; the rest follows when the client has sent bytes.
        connection.send(b"\x81\x04ab");
        assert_eq!(connection.read_exact(3).unwrap(), b"msg");
        connection.send(b"cd");
        assert_eq!(
            connection.read_exact(8).unwrap(),
            b"\x88\x82\x00\x00\x00\x00\x03\xe9",
            "the close frame of the client"
        );
        connection.send(b"\x88\x02\x03\xe9");
    });
    let mut sidecar = Sidecar::start(&policy(&[backend.address], IMMEDIATE_STREAM_SHUTDOWN));
    let mut client = sidecar.client();
    client
        .send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.read_head().unwrap().0, 101);
    assert_eq!(client.read_raw(4), b"\x81\x04ab");
    sidecar.app().drain();
    eventually("the drain closes streams", || {
        sidecar.app().state().drain.stage() == Stage::ClosingStreams
    });
    client.send("msg");
    assert_eq!(
        client.read_raw(6),
        b"cd\x88\x02\x03\xe9",
        "close code 1001, after the complete frame"
    );
    client.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9");
    assert_eq!(client.read_raw(1), b"", "nothing follows the close frame");
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
}

#[test]
fn a_drain_ends_server_sent_events_between_events_and_lets_downloads_complete() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        let request = connection.read_request().unwrap();
        if request.request_line().contains("/events") {
            connection.send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                 transfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
            );
            connection.wait_for_close();
        } else {
            connection.send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\
                 content-length: 18\r\n\r\ndata: a\n\n",
            );
            backend_gate.wait_for_release();
            connection.send("data: b\n\n");
        }
    });
    let mut sidecar = Sidecar::start(&policy(&[backend.address], IMMEDIATE_STREAM_SHUTDOWN));
    let (mut events, mut download) = (sidecar.client(), sidecar.client());
    events.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n");
    download.send("GET /download HTTP/1.1\r\nhost: a\r\n\r\n");
    let (events_head, download_head) = (events.read_head().unwrap(), download.read_head().unwrap());
    sidecar.app().drain();
    assert_eq!(
        events.read_body(200, events_head.1, true).text(),
        "data: a\n\n",
        "the stream ends as if the backend had ended it"
    );
    gate.release_one();
    assert_eq!(
        download.read_body(200, download_head.1, true).text(),
        "data: a\n\ndata: b\n\n"
    );
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    assert_eq!(
        sidecar
            .access_log_lines(2)
            .iter()
            .filter(|line| line["reason"] == "draining")
            .count(),
        1
    );
}

#[test]
fn a_drain_ends_a_grpc_stream_between_two_messages_with_unavailable() {
    let backend = Http2Backend::start(|mut call| async move {
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut stream = call.responder.send_response(head, false).unwrap();
        stream
            .send_data(
                [grpc_message(b"one"), grpc_message(b"two")].concat().into(),
                false,
            )
            .unwrap();
        // The stream does not end by itself.
        std::future::poll_fn(|context| stream.poll_reset(context))
            .await
            .unwrap();
    });
    let mut sidecar = Sidecar::start(
        &PolicyBuilder::new(&[backend.address])
            .backend_fields("protocol: GRPC")
            .sections(IMMEDIATE_STREAM_SHUTDOWN)
            .build(),
    );
    let client = Http2Client::connect(sidecar.address("inbound"));
    let (body, trailers) = client.runtime.block_on(async {
        let mut sender = client.sender.clone().ready().await.unwrap();
        let request = http::Request::post("http://test/shop.Prices/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        // The stream is open before the drain begins.
        sidecar.app().drain();
        read_body_and_trailers(&mut body).await
    });
    assert_eq!(
        &body[..],
        [grpc_message(b"one"), grpc_message(b"two")].concat()
    );
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
    drop(client);
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
}

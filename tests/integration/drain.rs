//! Leaving without losing a request.

use std::time::{Duration, Instant};

use outrigger::{resilience::lifecycle::Stage, state::lifecycle::End};

use crate::support::{
    Backend, Client, Sidecar,
    backend::Gate,
    eventually, eventually_async,
    http2::{Http2Backend, Http2Client, collect, message},
    sidecar::{policy, policy_with},
};

const QUICK: &str = "  lifecycle: {drain: {delay: 100ms, quietPeriod: 20ms, timeout: 20s}}\n";

/// With a way out for the app, to the same backend.
fn both_ways(backend: &Backend, sections: &str) -> String {
    let outbound = "    - {name: outbound, direction: Outbound, address: \"127.0.0.1:0\"}\n    - {name: inbound,";
    policy(&[backend.address], sections)
        .replace("    - {name: inbound,", outbound)
        .replace(
            "  routes:\n",
            "  routes:\n    - {name: out, listeners: [outbound], backendRefs: [{name: app}]}\n",
        )
}

#[test]
fn a_drain_is_unready_at_once_serves_what_still_comes_and_waits_for_what_is_in_flight() {
    let (backend, gate) = Backend::gated();
    let mut sidecar = Sidecar::start(&policy(&[backend.address], QUICK));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let mut idle = sidecar.client();
    assert_eq!(idle.get("/").header("connection"), Some("keep-alive"));

    sidecar.app().drain();
    eventually("it is unready", || {
        sidecar.admin("GET", "/readyz").status == 503
    });
    assert_eq!(sidecar.admin("GET", "/livez").status, 200);
    assert_eq!(sidecar.json("/api/v1/status")["lifecycle"], "draining");
    let during = idle.get("/");
    assert_eq!(
        (
            during.status,
            during.header("connection"),
            during.header("x-outrigger-draining")
        ),
        (200, Some("close"), Some("1; ttl=25")),
        "callers are told"
    );
    assert!(idle.is_closed());
    eventually("the delay is over", || {
        sidecar.app().state().departure.stage() > Stage::Announcing
    });
    assert_eq!(
        sidecar.get("/").text(),
        "done",
        "who has not heard of it yet is served"
    );
    assert_eq!(
        sidecar.admin("POST", "/api/v1/drain").status,
        202,
        "asking again changes nothing"
    );

    let app = sidecar.app.take().unwrap();
    let waiting = std::thread::spawn(move || app.wait());
    assert!(!waiting.is_finished());
    gate.open();
    let last = slow.answer();
    let ended = Instant::now();
    assert_eq!(
        (last.text().as_str(), last.header("connection")),
        ("done", Some("close"))
    );
    assert_eq!(waiting.join().unwrap(), End::Drained { is_clean: true });
    assert!(
        ended.elapsed() < Duration::from_millis(200),
        "gone {:?} after the last answer",
        ended.elapsed()
    );
}

#[test]
fn a_drain_that_was_asked_for_goes_on_serving_the_app_and_refuses_late_callers_unprocessed() {
    let backend = Backend::healthy();
    let mut sidecar = Sidecar::start(&both_ways(
        &backend,
        &QUICK.replace("delay: 100ms", "delay: 0s"),
    ));
    let (mut idle, admin) = (sidecar.client(), sidecar.app().admin_address());
    idle.get("/");
    let waiting = std::thread::spawn(move || Client::connect(admin).get("/drained").text());
    assert_eq!(sidecar.admin("POST", "/api/v1/drain").status, 202);
    assert_eq!(waiting.join().unwrap(), "drained\n");
    assert_eq!(sidecar.json("/api/v1/status")["lifecycle"], "drained");
    let seen = backend.seen().len();
    for late in [idle.post("/", "pay"), sidecar.client().get("/")] {
        assert_eq!(
            (
                late.status,
                late.reason(),
                late.header("connection"),
                late.header("retry-after")
            ),
            (503, "draining", Some("close"), Some("1"))
        );
        assert!(
            late.header("x-outrigger-draining")
                .unwrap()
                .starts_with("1; ttl=")
        );
    }
    assert_eq!(backend.seen().len(), seen, "nobody looked at them");
    let own = Client::connect(sidecar.address("outbound")).get("/");
    assert_eq!(
        (
            own.status,
            own.header("connection"),
            own.header("x-outrigger-draining")
        ),
        (200, Some("keep-alive"), None)
    );
    assert_eq!(sidecar.admin("POST", "/quitquitquit").text(), "quitting\n");
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
}

#[test]
fn an_instance_goes_when_the_app_asks_nothing_any_more() {
    let (backend, gate) = Backend::gated();
    let mut sidecar = Sidecar::start(&both_ways(
        &backend,
        &QUICK.replace("delay: 100ms", "delay: 0s"),
    ));
    let mut own = Client::connect(sidecar.address("outbound"));
    own.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    sidecar.app().drain();
    eventually("its callers are gone", || {
        sidecar.json("/api/v1/status")["lifecycle"] == "drained"
    });
    let app = sidecar.app.take().unwrap();
    let waiting = std::thread::spawn(move || app.wait());
    assert!(!waiting.is_finished());
    gate.open();
    assert_eq!(own.answer().text(), "done");
    assert_eq!(waiting.join().unwrap(), End::Drained { is_clean: true });
}

#[test]
fn the_end_of_a_job_waits_for_no_news_to_travel() {
    let backend = Backend::healthy();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &QUICK.replace("delay: 100ms", "delay: 15s"),
    ));
    assert_eq!(sidecar.admin("GET", "/quitquitquit").status, 405);
    let began = Instant::now();
    assert_eq!(sidecar.admin("POST", "/quitquitquit").status, 200);
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn connections_of_http2_are_told_to_end_at_once_and_what_runs_on_them_runs_on() {
    let (backend, gate) = Backend::gated();
    let mut sidecar = Sidecar::start(&policy(&[backend.address], QUICK));
    let (runtime, address) = (
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
        sidecar.address("inbound"),
    );
    let answered = runtime.block_on(async {
        let (mut send, connection) =
            h2::client::handshake(tokio::net::TcpStream::connect(address).await.unwrap())
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        let (answer, _) = send
            .send_request(http::Request::get("http://a/slow").body(()).unwrap(), true)
            .unwrap();
        eventually_async("it has arrived", || async { backend.seen().len() == 1 }).await;
        sidecar.app().drain();
        eventually_async("no more streams are taken", || {
            let send = send.clone();
            async { send.ready().await.is_err() }
        })
        .await;
        gate.open();
        let answer = answer.await.unwrap();
        drop(send);
        (answer.status(), connection.await.unwrap().is_ok())
    });
    assert_eq!(answered, (http::StatusCode::OK, true), "nothing is cut off");
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
}

#[test]
fn a_drain_is_bounded() {
    let (backend, _gate) = Backend::gated();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &QUICK.replace("timeout: 20s", "timeout: 150ms"),
    ));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    sidecar.app().drain();
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: false }
    );
}

#[test]
fn an_idle_instance_leaves_right_after_the_delay() {
    let backend = Backend::healthy();
    let mut sidecar = Sidecar::start(&policy(
        &[backend.address],
        &QUICK.replace("delay: 100ms", "delay: 0s"),
    ));
    let mut idle = sidecar.client();
    idle.get("/");
    sidecar.app().drain();
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    assert!(idle.is_closed(), "idle connections are closed");
}

/// Streams are ended as soon as the drain begins.
const AT_ONCE: &str =
    "  lifecycle: {drain: {delay: 0s, quietPeriod: 20ms, softTimeout: 0s, timeout: 20s}}\n";

#[test]
fn a_websocket_is_told_that_the_instance_goes_away_and_says_good_bye_to_the_app_itself() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        );
        // Half a frame, and the rest when the client has said something.
        connection.send(b"\x81\x04ab");
        assert_eq!(connection.exactly(3).unwrap(), b"ask");
        connection.send(b"cd");
        assert_eq!(
            connection.exactly(8).unwrap(),
            b"\x88\x82\x00\x00\x00\x00\x03\xe9",
            "the client's good-bye"
        );
        connection.send(b"\x88\x02\x03\xe9");
    });
    let mut sidecar = Sidecar::start(&policy(&[backend.address], AT_ONCE));
    let mut client = sidecar.client();
    client
        .send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 101);
    assert_eq!(client.raw(4), b"\x81\x04ab");
    sidecar.app().drain();
    eventually("streams are ended", || {
        sidecar.app().state().departure.stage() == Stage::Parting
    });
    client.send("ask");
    assert_eq!(
        client.raw(6),
        b"cd\x88\x02\x03\xe9",
        "1001, and not in the middle of a frame"
    );
    client.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9");
    assert!(client.is_closed(), "nothing comes after it");
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
}

#[test]
fn events_end_between_two_of_them_and_a_download_is_left_to_end_by_itself() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        let request = connection.request().unwrap();
        if request.line().contains("/events") {
            connection.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n");
            connection.wait_for_close();
        } else {
            connection.send("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 18\r\n\r\ndata: a\n\n");
            there.pass();
            connection.send("data: b\n\n");
        }
    });
    let mut sidecar = Sidecar::start(&policy(&[backend.address], AT_ONCE));
    let (mut events, mut download) = (sidecar.client(), sidecar.client());
    events.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n");
    download.send("GET /download HTTP/1.1\r\nhost: a\r\n\r\n");
    let (events_head, download_head) = (events.head().unwrap(), download.head().unwrap());
    sidecar.app().drain();
    assert_eq!(
        events.body(200, events_head.1, true).text(),
        "data: a\n\n",
        "complete, as if the app had ended it"
    );
    gate.open();
    assert_eq!(
        download.body(200, download_head.1, true).text(),
        "data: a\n\ndata: b\n\n"
    );
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    assert_eq!(
        sidecar
            .log(2)
            .iter()
            .filter(|line| line["reason"] == "draining")
            .count(),
        1
    );
}

#[test]
fn a_stream_of_grpc_ends_between_two_messages_with_unavailable() {
    let backend = Http2Backend::start(|mut call| async move {
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut stream = call.respond.send_response(head, false).unwrap();
        stream
            .send_data([message(b"one"), message(b"two")].concat().into(), false)
            .unwrap();
        // It goes on for ever.
        std::future::poll_fn(|context| stream.poll_reset(context))
            .await
            .unwrap();
    });
    let mut sidecar = Sidecar::start(&policy_with(
        &[format!("\"{}\"", backend.address)],
        "protocol: GRPC",
        AT_ONCE,
    ));
    let client = Http2Client::connect(sidecar.address("inbound"));
    let (body, trailers) = client.runtime.block_on(async {
        let mut send = client.send.clone().ready().await.unwrap();
        let request = http::Request::post("http://test/shop.Prices/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        // It was open before the drain began.
        sidecar.app().drain();
        collect(&mut body).await
    });
    assert_eq!(&body[..], [message(b"one"), message(b"two")].concat());
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
    drop(client);
    assert_eq!(
        sidecar.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
}

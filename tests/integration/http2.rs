//! HTTP/2 towards clients and backends, in every combination with HTTP/1.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

use crate::support::{
    Backend, Client, Sidecar,
    backend::{Gate, answer, ok},
    eventually, eventually_async,
    http2::{Http2Backend, Http2Client, collect, read},
    sidecar::policy,
};

fn http2(backend: &Http2Backend, sections: &str) -> Sidecar {
    Sidecar::start(
        &policy(&[backend.address], sections)
            .replace("]}\n  routes", "], protocol: HTTP2}\n  routes"),
    )
}

fn client(sidecar: &Sidecar) -> Http2Client {
    Http2Client::connect(sidecar.address("inbound"))
}

#[test]
fn a_client_of_http2_reaches_an_app_of_http1() {
    let backend = Backend::answering(|request| {
        ok(&format!(
            "{} {}",
            request.line(),
            String::from_utf8_lossy(&request.body)
        ))
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = client(&sidecar);
    let request = Request::post("http://pay.shop/v1?a=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let answer = client.ask(request, b"body", None).unwrap();
    assert_eq!(
        (answer.status, &answer.body[..]),
        (200, &b"POST /v1?a=1 HTTP/1.1 body"[..])
    );
    assert_eq!(answer.header("via"), "1.1 outrigger");
    let seen = &backend.seen()[0];
    assert_eq!(
        (
            seen.header("host"),
            seen.header("cookie"),
            seen.header("te")
        ),
        (Some("pay.shop"), Some("a=1; b=2"), None)
    );
    assert_eq!(
        (seen.header("via"), seen.header("transfer-encoding")),
        (Some("2 outrigger"), Some("chunked"))
    );
    let empty = client.get("/");
    assert_eq!(&empty.body[..], b"GET / HTTP/1.1 ");
    assert_eq!(sidecar.log(2)[0]["host"], "pay.shop");
}

#[test]
fn a_client_of_http1_reaches_an_app_of_http2() {
    let backend = Http2Backend::echoing();
    let sidecar = http2(&backend, "");
    let mut client = sidecar.client();
    assert_eq!(client.post("/v1?a=1", "body").text(), "body");
    client.send("POST / HTTP/1.1\r\nhost: pay.shop\r\ntransfer-encoding: chunked\r\nconnection: x-private\r\nx-private: 1\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    let answer = client.answer();
    assert_eq!(
        (answer.text().as_str(), answer.header("via")),
        ("abcde", Some("2 outrigger"))
    );
    let heads = backend.heads();
    assert_eq!(
        (heads[0].uri.to_string().as_str(), heads[0].method.as_str()),
        ("http://test/v1?a=1", "POST")
    );
    let forwarded = &heads[1];
    assert_eq!(forwarded.uri.authority().unwrap().as_str(), "pay.shop");
    for gone in ["host", "connection", "transfer-encoding", "x-private"] {
        assert!(!forwarded.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn trailers_pass_both_ways() {
    let backend = Http2Backend::echoing();
    let sidecar = http2(&backend, "");
    let trailers: HeaderMap = [("x-sum".parse().unwrap(), "7".parse().unwrap())]
        .into_iter()
        .collect();
    let answer = client(&sidecar)
        .ask(
            Request::post("http://test/").body(()).unwrap(),
            b"body",
            Some(trailers),
        )
        .unwrap();
    assert_eq!(
        (
            &answer.body[..],
            answer
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
    let sidecar = http2(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    client.runtime.block_on(async {
        let all = (0..200).map(|number| {
            let send = send.clone();
            tokio::spawn(async move {
                let mut send = send.ready().await.unwrap();
                let (response, mut stream) = send
                    .send_request(Request::post("http://test/").body(()).unwrap(), false)
                    .unwrap();
                stream
                    .send_data(Bytes::from(format!("{number}")), true)
                    .unwrap();
                assert_eq!(
                    read(response.await.unwrap()).await.unwrap().body,
                    format!("{number}")
                );
            })
        });
        for one in all.collect::<Vec<_>>() {
            one.await.unwrap();
        }
    });
    assert_eq!(backend.heads().len(), 200);
    assert!(
        backend.connections() <= 4,
        "{} connections",
        backend.connections()
    );
}

#[test]
fn large_bodies_pass_windows_in_both_directions_at_once() {
    let backend = Http2Backend::start(|mut call| async move {
        let mut stream = call
            .respond
            .send_response(Response::new(()), false)
            .unwrap();
        // Sends while it reads, as much as it reads.
        while let Some(Ok(piece)) = call.body.data().await {
            _ = call.body.flow_control().release_capacity(piece.len());
            stream.send_data(piece, false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let sidecar = http2(&backend, "");
    let body: Vec<u8> = (0..3_000_000_u32)
        .map(|number| number.to_be_bytes()[3])
        .collect();
    let echoed = client(&sidecar).post("/", &body);
    assert!(
        echoed.body == body,
        "{} of {} bytes",
        echoed.body.len(),
        body.len()
    );
    // And from a client of HTTP/1, to one of HTTP/1.
    let mut plain = sidecar.client();
    plain
        .send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
            300_000
        ))
        .send(&body[..300_000]);
    assert!(plain.answer().body == body[..300_000]);
}

#[test]
fn a_piece_is_passed_on_as_it_comes() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Http2Backend::start(move |mut call| {
        let gate = there.clone();
        async move {
            let mut stream = call
                .respond
                .send_response(Response::new(()), false)
                .unwrap();
            stream.send_data("first".into(), false).unwrap();
            tokio::task::spawn_blocking(move || gate.pass())
                .await
                .unwrap();
            stream.send_data("second".into(), true).unwrap();
        }
    });
    let sidecar = http2(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    client.runtime.block_on(async {
        let (response, _) = send
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(
            body.data().await.unwrap().unwrap(),
            "first",
            "before the second is there"
        );
        gate.open();
        assert_eq!(body.data().await.unwrap().unwrap(), "second");
    });
}

#[test]
fn a_client_that_gives_up_frees_its_place_at_the_app() {
    let backend = Http2Backend::start(|mut call| async move {
        // Waits until the caller is gone.
        _ = std::future::poll_fn(|context| call.respond.poll_reset(context)).await;
    });
    let sidecar = http2(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    client.runtime.block_on(async {
        let (response, stream) = send
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        tokio::task::block_in_place(|| eventually("it is in flight", || sidecar.in_flight() == 1));
        drop((response, stream));
    });
    eventually("it is given up", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.log(1)[0]["reason"], "client_closed");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn refused_streams_and_goaway_are_tried_again_for_every_method() {
    let count = AtomicUsize::new(0);
    let backend = Http2Backend::start(move |mut call| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if is_first {
                call.respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                let (body, _) = collect(&mut call.body).await;
                call.respond
                    .send_response(Response::new(()), false)
                    .unwrap()
                    .send_data(body, true)
                    .unwrap();
            }
        }
    });
    let sidecar = http2(&backend, "");
    let answer = client(&sidecar).post("/pay", b"once");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"once"[..]));
    assert_eq!(backend.heads().len(), 2);
    assert_eq!(
        backend.heads()[1].headers["x-outrigger-attempt"],
        "1",
        "what was refused was not seen"
    );
}

#[test]
fn a_stream_that_is_reset_is_not_tried_again_if_it_may_have_run() {
    let backend = Http2Backend::start(|mut call| async move {
        call.respond.send_reset(h2::Reason::INTERNAL_ERROR)
    });
    let sidecar = http2(&backend, "");
    let answer = client(&sidecar).post("/pay", b"once");
    assert_eq!(
        (answer.status, answer.header("x-outrigger-reason")),
        (502, format!("upstream_reset:{}", backend.address).as_str())
    );
    assert_eq!(backend.heads().len(), 1);
    assert_eq!(backend.connections(), 1, "the connection is good");
}

#[test]
fn an_answer_that_breaks_off_is_broken_off() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let client = client(&sidecar);
    let broken = client
        .ask(Request::get("http://test/").body(()).unwrap(), b"", None)
        .unwrap_err();
    assert_eq!(broken.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(sidecar.log(1)[0]["reason"], "upstream_reset");
}

#[test]
fn refusals_and_answers_without_a_body_end_their_stream_at_once() {
    let backend = Backend::answering(|_| "HTTP/1.1 204 No Content\r\n\r\n".to_owned());
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "backendRefs",
        "matches: [{path: {value: /here}}], backendRefs",
    ));
    let client = client(&sidecar);
    assert_eq!(client.get("/here").status, 204);
    let refusal = client.get("/elsewhere");
    assert_eq!(
        (refusal.status, refusal.header("x-outrigger-reason")),
        (404, "no_route")
    );
    assert!(refusal.body.starts_with(b"{"));
    let head = client
        .ask(
            Request::head("http://test/elsewhere").body(()).unwrap(),
            b"",
            None,
        )
        .unwrap();
    assert_eq!((head.status, head.body.len()), (404, 0));
}

#[test]
fn a_listener_takes_what_its_policy_says() {
    let backend = Backend::healthy();
    let text = policy(&[backend.address], "");
    let only = |protocol: &str| {
        Sidecar::start(&text.replace(
            "\"127.0.0.1:0\"",
            &format!("\"127.0.0.1:0\", protocol: {protocol}"),
        ))
    };
    let both = only("Auto");
    assert_eq!(
        (client(&both).get("/").status, both.get("/").status),
        (200, 200)
    );
    let one = only("HTTP1");
    assert_eq!(one.get("/").status, 200);
    let mut preface = one.client();
    preface.try_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(preface.answer().status, 400);
    let two = only("HTTP2");
    assert_eq!(client(&two).get("/").status, 200);
    let mut plain = two.client();
    plain.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(
        plain.try_answer().is_none_or(|answer| answer.status == 0),
        "it is not answered in HTTP/1"
    );
}

#[test]
fn a_listener_that_takes_both_survives_short_silent_and_undecided_connections() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "\"127.0.0.1:0\"",
        "\"127.0.0.1:0\", limits: {headerTimeout: 300ms}",
    ));
    let silent: Vec<Client> = (0..20).map(|_| sidecar.client()).collect();
    // Shorter than the preface.
    let mut short = sidecar.client();
    assert_eq!(short.send("GET / HTTP/1.0\r\n\r\n").answer().status, 200);
    // Byte by byte, and like the preface for a while.
    let mut slow = sidecar.client();
    for byte in "PROPFIND / HTTP/1.1\r\nhost: a\r\n\r\n".bytes() {
        slow.send([byte]);
    }
    assert_eq!(slow.answer().status, 200);
    let mut half = sidecar.client();
    half.send("PRI * HT");
    assert!(half.is_closed(), "half of the preface and no more");
    let mut left = sidecar.client();
    left.send("PRI");
    left.shutdown_write();
    assert!(left.is_closed());
    assert_eq!(sidecar.get("/").status, 200);
    drop(silent);
}

#[test]
fn a_client_that_opens_and_resets_in_turn_is_shown_the_door() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.respond.poll_reset(context)).await;
    });
    let sidecar = http2(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    let ended = client.runtime.block_on(async {
        for _ in 0..5_000 {
            let Ok(mut ready) = send.clone().ready().await else {
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
    assert!(ended, "5000 resets went unpunished");
    eventually("nothing is left in flight", || sidecar.in_flight() == 0);
    assert_eq!(client_again(&sidecar), 404, "others are served");
}

/// Another client is answered; its route is elsewhere, so that the backend is not asked.
fn client_again(sidecar: &Sidecar) -> u16 {
    sidecar.reload(&policy(&[Backend::nowhere()], "").replace(
        "backendRefs",
        "matches: [{path: {value: /here}}], backendRefs",
    ));
    client(sidecar).get("/elsewhere").status
}

#[test]
fn no_more_streams_than_are_allowed_run_at_once() {
    let backend = Backend::answering(|_| answer(200, "x"));
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "\"127.0.0.1:0\"",
        "\"127.0.0.1:0\", limits: {maxConcurrentStreams: 3, maxHeaderBytes: 4Ki}",
    ));
    let client = client(&sidecar);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.send.current_max_send_streams(), 3);
    let long = Request::get("http://test/")
        .header("x-long", "y".repeat(8_000))
        .body(())
        .unwrap();
    let refused = client.ask(long, b"", None);
    assert!(
        refused.as_ref().map_or(true, |answer| answer.status == 431),
        "{refused:?}"
    );
}

#[test]
fn a_draining_instance_says_goaway_and_finishes_what_runs() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            there.pass();
            connection.send(ok("late"));
        }
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  lifecycle: {drain: {delay: 10ms, quietPeriod: 10ms, timeout: 15s}}\n",
    ));
    let client = client(&sidecar);
    let send = client.send.clone();
    let answer = client.runtime.block_on(async {
        let (response, _) = send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(Request::get("http://test/").body(()).unwrap(), true)
            .unwrap();
        tokio::task::block_in_place(|| {
            eventually("it is in flight", || sidecar.in_flight() == 1);
            sidecar.admin("POST", "/api/v1/drain");
        });
        // The connection takes no more requests.
        eventually_async("it says so", || async {
            let Ok(mut ready) = send.clone().ready().await else {
                return true;
            };
            let is_over = ready
                .send_request(Request::get("http://test/").body(()).unwrap(), true)
                .is_err();
            if !is_over {
                gate.open();
            }
            is_over
        })
        .await;
        gate.open();
        read(response.await.unwrap()).await.unwrap()
    });
    assert_eq!((answer.status, &answer.body[..]), (200, &b"late"[..]));
}

#[test]
fn clients_that_do_not_read_hold_nobody_up_on_a_shared_connection() {
    let backend = Http2Backend::start(|mut call| async move {
        let size = if call.head.uri.path() == "/large" {
            1 << 20
        } else {
            2
        };
        call.respond
            .send_response(Response::new(()), false)
            .unwrap()
            .send_data(vec![b'x'; size].into(), true)
            .unwrap();
        // Held until all of it was taken, or the caller is gone.
        _ = call.body.data().await;
    });
    let sidecar = http2(&backend, "");
    let idle: Vec<_> = (0..24)
        .map(|_| {
            let client = client(&sidecar);
            let send = client.send.clone();
            let response = client.runtime.block_on(async {
                let (response, _) = send
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
        assert_eq!(&client(&sidecar).get("/small").body[..], b"xx");
    }
    drop(idle);
}

#[test]
fn an_idle_client_is_sent_away_even_if_it_does_not_listen() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], "").replace(
        "\"127.0.0.1:0\"",
        "\"127.0.0.1:0\", limits: {idleTimeout: 50ms}",
    ));
    let mut deaf = sidecar.client();
    // The preface and empty settings, and never a word again: no acknowledgement, no answer to a ping.
    deaf.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(deaf.is_closed());
    eventually("its place is free", || {
        sidecar.metric(r#"outrigger_connections{listener="inbound"}"#) == 0.0
    });
}

#[test]
fn a_connection_on_which_nothing_comes_is_not_used_again() {
    // It takes the first request and says nothing any more, as when a network drops packets.
    let backend = Http2Backend::start(|call| async move {
        if call.head.uri.path() == "/silence" {
            crate::support::take(Duration::from_secs(2));
        }
        let mut respond = call.respond;
        respond.send_response(Response::new(()), true).unwrap();
    });
    let sidecar = http2(
        &backend,
        "  defaults: {timeouts: {request: 100ms, backendRequest: 100ms}}\n",
    );
    let client = client(&sidecar);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.get("/silence").status, 504);
    eventually("a new connection is made", || {
        client.get("/");
        backend.connections() >= 2
    });
}

#[test]
fn an_idle_connection_gives_its_place_to_one_that_is_needed() {
    let (first, second) = (Http2Backend::echoing(), Http2Backend::echoing());
    let bound = "  defaults: {connectionLimits: {maxConnections: 1}}\n";
    let text = policy(&[first.address, second.address], bound).replace(
        "]}\n  routes",
        "], protocol: HTTP2, loadBalancer: {type: RoundRobin}}\n  routes",
    );
    let sidecar = Sidecar::start(&text);
    for _ in 0..20 {
        // Clients of both workers; each finds the other's connection in the way, which is idle a moment after its answer.
        eventually("there is room", || {
            sidecar.client().post("/", "body").status == 200
        });
    }
    assert!(first.connections() > 1 && second.connections() > 1);
}

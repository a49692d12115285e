//! gRPC: the outcome is in the trailers, or instead of an answer.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

use crate::support::{
    Backend, PATIENCE, Sidecar,
    backend::Gate,
    eventually, eventually_async,
    http2::{Call, Http2Backend, Http2Client, collect, ended, message, read},
    sidecar::{policy, policy_with},
};

fn grpc(backend: &Http2Backend, sections: &str) -> Sidecar {
    grpc_with(backend, "", sections)
}

fn grpc_with(backend: &Http2Backend, extra: &str, sections: &str) -> Sidecar {
    Sidecar::start(&policy(&[backend.address], sections).replace(
        "]}\n  routes",
        &format!("], protocol: GRPC{extra}}}\n  routes"),
    ))
}

fn client(sidecar: &Sidecar) -> Http2Client {
    Http2Client::connect(sidecar.address("inbound"))
}

/// Answers with one message and this status in the trailers.
async fn answer(mut call: Call, status: &str) {
    collect(&mut call.body).await;
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let mut stream = call.respond.send_response(head, false).unwrap();
    stream.send_data(message(b"answer").into(), false).unwrap();
    stream.send_trailers(ended(status)).unwrap();
}

/// Answers with nothing but this status.
async fn refuse(mut call: Call, status: &str) {
    collect(&mut call.body).await;
    let mut head = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    head.headers_mut().extend(ended(status));
    call.respond.send_response(head, true).unwrap();
}

#[test]
fn a_call_passes_with_its_trailers() {
    let backend = Http2Backend::start(|call| answer(call, "0"));
    let sidecar = grpc(&backend, "");
    let done = client(&sidecar).call("/shop.Payments/Charge", None);
    assert_eq!(
        (done.status, done.grpc_status(), &done.body[..]),
        (200, Some("0"), &message(b"answer")[..])
    );
    assert!(done.trailers.is_some(), "the status stays where it was");
    let head = &backend.heads()[0];
    assert_eq!(
        (
            head.headers["te"].to_str().unwrap(),
            head.headers["content-type"].to_str().unwrap()
        ),
        ("trailers", "application/grpc")
    );
    assert_eq!(sidecar.log(1)[0]["grpc_status"], 0);
    assert_eq!(
        sidecar.metric(r#"outrigger_grpc_requests_total{route="in",code="0"}"#),
        1.0
    );
}

#[test]
fn an_answer_that_is_nothing_but_a_status_stays_so() {
    let backend = Http2Backend::start(|call| async { refuse(call, "5").await });
    let sidecar = grpc(&backend, "");
    let done = client(&sidecar).call("/shop.Payments/Charge", None);
    assert_eq!(
        (
            done.head.get("grpc-status").unwrap().to_str().unwrap(),
            done.body.len(),
            done.trailers
        ),
        ("5", 0, None)
    );
}

#[test]
fn the_breaker_reads_trailers_and_refuses_in_the_words_of_grpc() {
    for instead_of_an_answer in [false, true] {
        let backend = Http2Backend::start(move |call| async move {
            if instead_of_an_answer {
                refuse(call, "14").await
            } else {
                answer(call, "14").await
            }
        });
        let sidecar = grpc(
            &backend,
            "  defaults: {retry: {mode: Off}, circuitBreaker: {consecutiveFailures: 3, waitDurationInOpenState: 10s}}\n",
        );
        let client = client(&sidecar);
        for _ in 0..3 {
            assert_eq!(
                client.call("/shop.Payments/Charge", None).grpc_status(),
                Some("14")
            );
        }
        let refusal = client.call("/shop.Payments/Charge", None);
        assert_eq!(
            (
                refusal.status,
                refusal.grpc_status(),
                refusal.header("x-outrigger-reason")
            ),
            (200, Some("14"), "breaker_open:app")
        );
        assert_eq!(
            refusal.header("grpc-message"),
            "the circuit breaker is open"
        );
        let wait: u64 = refusal.header("grpc-retry-pushback-ms").parse().unwrap();
        assert!((7_000..=12_000).contains(&wait), "{wait} ms");
        assert_eq!(backend.heads().len(), 3);
    }
}

#[test]
fn a_callers_own_mistakes_are_not_the_backends_failures() {
    let backend = Http2Backend::start(|call| answer(call, "3"));
    let sidecar = grpc(
        &backend,
        "  defaults: {circuitBreaker: {consecutiveFailures: 2}}\n",
    );
    let client = client(&sidecar);
    for _ in 0..10 {
        assert_eq!(
            client.call("/shop.Payments/Charge", None).grpc_status(),
            Some("3")
        );
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
    assert_eq!(
        sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="success"}"#),
        10.0
    );
}

#[test]
fn a_call_that_was_refused_before_it_began_is_tried_again() {
    let backend = Http2Backend::start(|call| async {
        if call.head.headers["x-outrigger-attempt"] == "1" {
            refuse(call, "14").await
        } else {
            answer(call, "0").await
        }
    });
    let cautious = grpc(
        &backend,
        "  defaults: {retry: {attempts: 1, backoff: 1ms}}\n",
    );
    assert_eq!(
        client(&cautious)
            .call("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "it may have run, unless the policy says otherwise"
    );
    let sidecar = grpc(
        &backend,
        "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable]}}\n",
    );
    assert_eq!(
        client(&sidecar)
            .call("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("0")
    );
    assert_eq!(backend.heads().len(), 3);
    let other = Http2Backend::start(|call| async { refuse(call, "8").await });
    let sidecar = grpc(
        &other,
        "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable, aborted]}}\n",
    );
    assert_eq!(
        client(&sidecar)
            .call("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("8")
    );
    assert_eq!(other.heads().len(), 1, "not one of the codes");
}

#[test]
fn a_call_that_failed_in_its_trailers_is_not_tried_again() {
    let backend = Http2Backend::start(|call| answer(call, "14"));
    let sidecar = grpc(
        &backend,
        "  defaults: {retry: {attempts: 2, backoff: 1ms, grpcCodes: [unavailable]}}\n",
    );
    assert_eq!(
        client(&sidecar)
            .call("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14")
    );
    assert_eq!(backend.heads().len(), 1);
}

/// Begins an answer, and ends it with this status and no message.
async fn fail_after_the_head(mut call: Call, status: &str) {
    collect(&mut call.body).await;
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    call.respond
        .send_response(head, false)
        .unwrap()
        .send_trailers(ended(status))
        .unwrap();
}

#[test]
fn a_call_that_failed_in_its_trailers_before_any_message_is_tried_again_by_leave_of_the_route() {
    let backend = Http2Backend::start(|call| async {
        if call.head.headers["x-outrigger-attempt"] == "1" {
            fail_after_the_head(call, "14").await
        } else {
            answer(call, "0").await
        }
    });
    let retry = "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable]}}\n";
    assert_eq!(
        client(&grpc(&backend, retry))
            .call("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "it may have run"
    );
    let sidecar = grpc(
        &backend,
        &retry.replace("attempts", "retryNonIdempotent: true, attempts"),
    );
    let done = client(&sidecar).call("/shop.Payments/Charge", None);
    assert_eq!(
        (done.grpc_status(), &done.body[..]),
        (Some("0"), &message(b"answer")[..])
    );
    assert_eq!(backend.heads().len(), 3);
}

#[test]
fn a_backend_says_when_or_whether_a_call_is_tried_again() {
    for (pushback, expected) in [("1", 2), ("-1", 1), ("soon", 1), ("3600000", 1)] {
        let backend = Http2Backend::start(move |mut call| async move {
            let mut head = Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            head.headers_mut().extend(ended("14"));
            head.headers_mut()
                .insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
            call.respond.send_response(head, true).unwrap();
        });
        let sidecar = grpc(
            &backend,
            "  defaults: {retry: {attempts: 1, backoff: 10s, maxBackoff: 10s, grpcCodes: [unavailable]}}\n",
        );
        assert_eq!(
            client(&sidecar)
                .call("/shop.Payments/Charge", None)
                .grpc_status(),
            Some("14")
        );
        assert_eq!(backend.heads().len(), expected, "{pushback}");
    }
}

#[test]
fn the_deadline_is_passed_on_and_kept() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.respond.poll_reset(context)).await;
    });
    let sidecar = grpc(&backend, "");
    let client = client(&sidecar);
    let done = client.call("/shop.Payments/Charge", Some("150m"));
    assert_eq!(
        (
            done.status,
            done.grpc_status(),
            done.header("x-outrigger-reason").split(':').next().unwrap()
        ),
        (200, Some("4"), "request_timeout")
    );
    let passed_on = backend.heads()[0].headers["grpc-timeout"]
        .to_str()
        .unwrap()
        .to_owned();
    let millis: u64 = passed_on.strip_suffix('m').unwrap().parse().unwrap();
    assert!(millis <= 150, "{passed_on}");
    client.call("/shop.Payments/Charge", Some("1u"));
    // The policy's own limit is until the head, and must not be taken for that of a stream.
    let sidecar = grpc(
        &backend,
        "  defaults: {timeouts: {request: 300ms, backendRequest: 300ms}}\n",
    );
    let before = backend.heads().len();
    assert_eq!(
        Http2Client::connect(sidecar.address("inbound"))
            .call("/shop.Payments/Charge", Some("1H"))
            .grpc_status(),
        Some("4")
    );
    let head = &backend.heads()[before].headers;
    let of_call = head["grpc-timeout"]
        .to_str()
        .unwrap()
        .strip_suffix('m')
        .unwrap()
        .parse::<u64>()
        .unwrap();
    assert!((3_590_000..=3_600_000).contains(&of_call), "{of_call}");
    assert!(
        head["x-outrigger-deadline-ms"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            <= 300
    );
    let before = backend.heads().len();
    client.call("/shop.Payments/Charge", None);
    assert!(
        !backend.heads()[before].headers.contains_key("grpc-timeout"),
        "who gave no end gets none"
    );
}

#[test]
fn a_stream_past_its_deadline_is_told_so_in_trailers() {
    let backend = Http2Backend::start(|mut call| async move {
        let mut stream = call
            .respond
            .send_response(
                Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap(),
                false,
            )
            .unwrap();
        stream.send_data(message(b"first").into(), false).unwrap();
        _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
    });
    let sidecar = grpc(&backend, "");
    let done = client(&sidecar).call("/shop.Feed/Watch", Some("200m"));
    assert_eq!(
        (
            &done.body[..],
            done.trailers.as_ref().unwrap()["grpc-status"]
                .to_str()
                .unwrap()
        ),
        (&message(b"first")[..], "4")
    );
    assert_eq!(sidecar.log(1)[0]["grpc_status"], 4);
}

#[test]
fn a_stream_that_breaks_off_is_told_so_in_trailers_and_counts_as_a_failure() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Http2Backend::start(move |mut call| {
        let gate = there.clone();
        async move {
            let mut stream = call
                .respond
                .send_response(
                    Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap(),
                    false,
                )
                .unwrap();
            stream.send_data(message(b"first").into(), false).unwrap();
            tokio::task::spawn_blocking(move || gate.pass())
                .await
                .unwrap();
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    });
    let sidecar = grpc(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    let done = client.runtime.block_on(async {
        let request = Request::post("http://test/shop.Feed/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, _) = send
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        let response = response.await.unwrap();
        // The answer has begun.
        gate.open();
        read(response).await.unwrap()
    });
    assert_eq!(
        done.trailers.as_ref().unwrap()["grpc-status"]
            .to_str()
            .unwrap(),
        "14"
    );
    eventually("it is counted", || {
        sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="reset"}"#) == 1.0
    });
}

#[test]
fn a_talk_goes_back_and_forth() {
    let backend = Http2Backend::start(|mut call| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut stream = call.respond.send_response(head, false).unwrap();
        while let Some(Ok(piece)) = call.body.data().await {
            _ = call.body.flow_control().release_capacity(piece.len());
            stream.send_data(piece, false).unwrap();
        }
        stream.send_trailers(ended("0")).unwrap();
    });
    let sidecar = grpc(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    client.runtime.block_on(async {
        let request = Request::post("http://test/shop.Chat/Talk")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = send
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            stream
                .send_data(Bytes::from(message(word.as_bytes())), false)
                .unwrap();
            let heard = body.data().await.unwrap().unwrap();
            _ = body.flow_control().release_capacity(heard.len());
            assert_eq!(heard, message(word.as_bytes()));
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
    eventually("it is judged by its trailers", || {
        sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="success"}"#) == 1.0
    });
}

#[test]
fn a_stream_that_has_begun_well_brings_an_endpoint_back() {
    let is_ill = Arc::new(AtomicBool::new(true));
    let there = is_ill.clone();
    let ill = Http2Backend::start(move |mut call| {
        let is_ill = there.load(Ordering::SeqCst);
        async move {
            if is_ill {
                return refuse(call, "14").await;
            }
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .header("x-stays", "open")
                .body(())
                .unwrap();
            let mut stream = call.respond.send_response(head, false).unwrap();
            stream.send_data(message(b"first").into(), false).unwrap();
            // It does not end.
            _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
    });
    let good = Http2Backend::start(|call| answer(call, "0"));
    let out = "protocol: GRPC, outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(&policy_with(
        &[
            format!("\"{}\"", ill.address),
            format!("\"{}\"", good.address),
        ],
        out,
        "",
    ));
    let client = client(&sidecar);
    let standing = || {
        sidecar.json("/api/v1/backends")[0]["endpoints"][0]["outlier"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("it is out", || {
        client.call("/shop.Feed/Watch", None);
        standing() != "in"
    });
    is_ill.store(false, Ordering::SeqCst);
    let send = client.send.clone();
    client.runtime.block_on(async {
        // They are kept open, so that nothing but their beginning is known.
        let streams = RefCell::new(Vec::new());
        eventually_async("it is back", || async {
            let request = Request::post("http://test/shop.Feed/Watch")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (response, _) = send
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(request, true)
                .unwrap();
            let response = tokio::time::timeout(PATIENCE, response)
                .await
                .unwrap()
                .unwrap();
            if response.headers().contains_key("x-stays") {
                streams.borrow_mut().push(response);
            } else {
                read(response).await.unwrap();
            }
            standing() == "in"
        })
        .await;
        assert!(!streams.borrow().is_empty());
    });
}

#[test]
fn rate_limits_and_missing_routes_speak_grpc() {
    let backend = Http2Backend::start(|call| answer(call, "0"));
    let limited = "  defaults: {rateLimit: {local: {rules: [{name: few, limit: {requests: 1, unit: Hour}}]}}}\n";
    let sidecar = grpc(&backend, limited);
    let client = client(&sidecar);
    assert_eq!(client.call("/a/B", None).grpc_status(), Some("0"));
    assert_eq!(
        (
            client.call("/a/B", None).grpc_status(),
            client.call("/a/B", None).header("x-outrigger-reason")
        ),
        (Some("8"), "rate_limited:few")
    );
    let nowhere = Sidecar::start(&policy(&[Backend::nowhere()], "").replace(
        "backendRefs",
        "matches: [{path: {value: /here}}], backendRefs",
    ));
    assert_eq!(
        Http2Client::connect(nowhere.address("inbound"))
            .call("/elsewhere/B", None)
            .grpc_status(),
        Some("12")
    );
    let refused = Sidecar::start(
        &policy(&[Backend::nowhere()], "").replace("]}\n  routes", "], protocol: GRPC}\n  routes"),
    );
    assert_eq!(
        Http2Client::connect(refused.address("inbound"))
            .call("/a/B", None)
            .grpc_status(),
        Some("14")
    );
}

#[test]
fn the_health_service_is_asked() {
    let served = Arc::new(std::sync::Mutex::new(1_u8));
    let status = served.clone();
    let backend = Http2Backend::start(move |mut call| {
        let status = *status.lock().unwrap();
        async move {
            assert_eq!(call.head.uri.path(), "/grpc.health.v1.Health/Check");
            let (asked, _) = collect(&mut call.body).await;
            assert_eq!(asked, message(b"\x0a\x08shop.Pay"));
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            if status == 0 {
                let mut head = head;
                head.headers_mut().extend(HeaderMap::from_iter([(
                    "grpc-status".parse().unwrap(),
                    "5".parse().unwrap(),
                )]));
                call.respond.send_response(head, true).unwrap();
                return;
            }
            let mut stream = call.respond.send_response(head, false).unwrap();
            stream
                .send_data(message(&[8, status]).into(), false)
                .unwrap();
            stream.send_trailers(ended("0")).unwrap();
        }
    });
    let check = ", healthCheck: {active: {type: GRPC, interval: 20ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, grpc: {service: shop.Pay}}}";
    let sidecar = grpc_with(&backend, check, "");
    let endpoint = || sidecar.json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("it serves", || endpoint()["health"] == "healthy");
    for (status, words) in [
        (2, "NOT_SERVING"),
        (3, "SERVICE_UNKNOWN"),
        (0, "grpc status 5"),
    ] {
        *served.lock().unwrap() = status;
        eventually("what is wrong is said", || {
            endpoint()["last_check"] == words
        });
        assert_eq!(endpoint()["health"], "unhealthy");
    }
    *served.lock().unwrap() = 1;
    eventually("it serves again", || endpoint()["health"] == "healthy");
}

#[test]
fn what_is_read_of_an_answer_is_its_own() {
    // Two calls on one connection, whose answers come in the other order.
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Http2Backend::start(move |call| {
        let gate = there.clone();
        async move {
            if call.head.uri.path() == "/slow/A" {
                tokio::task::spawn_blocking(move || gate.pass())
                    .await
                    .unwrap();
                answer(call, "9").await;
            } else {
                answer(call, "0").await;
            }
        }
    });
    let sidecar = grpc(&backend, "");
    let client = client(&sidecar);
    let send = client.send.clone();
    let slow = client.runtime.spawn(async move {
        let request = Request::post("http://test/slow/A")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, _) = send
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        read(response.await.unwrap()).await.unwrap()
    });
    eventually("the slow one is there", || backend.heads().len() == 1);
    assert_eq!(client.call("/fast/B", None).grpc_status(), Some("0"));
    gate.open();
    assert_eq!(
        client.runtime.block_on(slow).unwrap().grpc_status(),
        Some("9")
    );
}

#[test]
fn how_little_time_a_client_gives_is_not_the_backends_fault() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.respond.poll_reset(context)).await;
    });
    let sidecar = grpc(
        &backend,
        "  defaults: {circuitBreaker: {consecutiveFailures: 2}}\n",
    );
    let client = client(&sidecar);
    for _ in 0..6 {
        assert_eq!(
            client
                .call("/shop.Payments/Charge", Some("20m"))
                .grpc_status(),
            Some("4")
        );
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
}

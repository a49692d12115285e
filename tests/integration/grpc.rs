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
    ScriptedBackend, Sidecar, TEST_TIMEOUT,
    backend::ResponseGate,
    eventually, eventually_async,
    http2::{
        Http2Backend, Http2Client, IncomingCall, grpc_message, grpc_status_trailers,
        read_body_and_trailers, read_response,
    },
    policy::{policy, policy_with_backend_fields},
};

fn start_grpc_sidecar(backend: &Http2Backend, sections: &str) -> Sidecar {
    start_grpc_sidecar_with_backend_fields(backend, "", sections)
}

fn start_grpc_sidecar_with_backend_fields(
    backend: &Http2Backend,
    extra: &str,
    sections: &str,
) -> Sidecar {
    Sidecar::start(&policy(&[backend.address], sections).replace(
        "]}\n  routes",
        &format!("], protocol: GRPC{extra}}}\n  routes"),
    ))
}

fn connect_client(sidecar: &Sidecar) -> Http2Client {
    Http2Client::connect(sidecar.address("inbound"))
}

fn grpc_request_head(uri: &str) -> Request<()> {
    Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

fn grpc_response_head() -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

/// Answers with one message and this status in the trailers.
async fn respond(mut call: IncomingCall, status: &str) {
    read_body_and_trailers(&mut call.body).await;
    let head = grpc_response_head();
    let mut stream = call.responder.send_response(head, false).unwrap();
    stream
        .send_data(grpc_message(b"answer").into(), false)
        .unwrap();
    stream.send_trailers(grpc_status_trailers(status)).unwrap();
}

/// Answers with nothing but this status.
async fn respond_trailers_only(mut call: IncomingCall, status: &str) {
    read_body_and_trailers(&mut call.body).await;
    let mut head = grpc_response_head();
    head.headers_mut().extend(grpc_status_trailers(status));
    call.responder.send_response(head, true).unwrap();
}

#[test]
fn a_call_is_forwarded_with_its_trailers() {
    let backend = Http2Backend::start(|call| respond(call, "0"));
    let sidecar = start_grpc_sidecar(&backend, "");
    let done = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
    assert_eq!(
        (done.status, done.grpc_status(), &done.body[..]),
        (200, Some("0"), &grpc_message(b"answer")[..])
    );
    assert!(done.trailers.is_some(), "the status stays where it was");
    let head = &backend.request_heads()[0];
    assert_eq!(
        (
            head.headers["te"].to_str().unwrap(),
            head.headers["content-type"].to_str().unwrap()
        ),
        ("trailers", "application/grpc")
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["grpc_status"], 0);
    assert_eq!(
        sidecar.metric(r#"outrigger_grpc_requests_total{route="in",code="0"}"#),
        1.0
    );
}

#[test]
fn a_trailers_only_response_stays_trailers_only() {
    let backend = Http2Backend::start(|call| async { respond_trailers_only(call, "5").await });
    let sidecar = start_grpc_sidecar(&backend, "");
    let done = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
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
fn the_breaker_counts_grpc_statuses_and_rejects_with_a_grpc_status() {
    for is_trailers_only in [false, true] {
        let backend = Http2Backend::start(move |call| async move {
            if is_trailers_only {
                respond_trailers_only(call, "14").await
            } else {
                respond(call, "14").await
            }
        });
        let sidecar = start_grpc_sidecar(
            &backend,
            "  defaults: {retry: {mode: Off}, circuitBreaker: {consecutiveFailures: 3, waitDurationInOpenState: 10s}}\n",
        );
        let client = connect_client(&sidecar);
        for _ in 0..3 {
            assert_eq!(
                client
                    .call_grpc("/shop.Payments/Charge", None)
                    .grpc_status(),
                Some("14")
            );
        }
        let refusal = client.call_grpc("/shop.Payments/Charge", None);
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
        assert_eq!(backend.request_heads().len(), 3);
    }
}

#[test]
fn client_error_statuses_are_no_failures_of_the_backend() {
    let backend = Http2Backend::start(|call| respond(call, "3"));
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {circuitBreaker: {consecutiveFailures: 2}}\n",
    );
    let client = connect_client(&sidecar);
    for _ in 0..10 {
        assert_eq!(
            client
                .call_grpc("/shop.Payments/Charge", None)
                .grpc_status(),
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
fn a_trailers_only_failure_is_retried_if_the_policy_lists_its_status() {
    let backend = Http2Backend::start(|call| async {
        if call.head.headers["x-outrigger-attempt"] == "1" {
            respond_trailers_only(call, "14").await
        } else {
            respond(call, "0").await
        }
    });
    let cautious = start_grpc_sidecar(
        &backend,
        "  defaults: {retry: {attempts: 1, backoff: 1ms}}\n",
    );
    assert_eq!(
        connect_client(&cautious)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "it may have run, unless the policy says otherwise"
    );
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable]}}\n",
    );
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("0")
    );
    assert_eq!(backend.request_heads().len(), 3);
    let other = Http2Backend::start(|call| async { respond_trailers_only(call, "8").await });
    let sidecar = start_grpc_sidecar(
        &other,
        "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable, aborted]}}\n",
    );
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("8")
    );
    assert_eq!(other.request_heads().len(), 1, "not one of the codes");
}

#[test]
fn a_call_that_failed_after_a_message_is_not_retried() {
    let backend = Http2Backend::start(|call| respond(call, "14"));
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {retry: {attempts: 2, backoff: 1ms, grpcCodes: [unavailable]}}\n",
    );
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14")
    );
    assert_eq!(backend.request_heads().len(), 1);
}

/// Begins an answer, and ends it with this status and no message.
async fn respond_without_a_message(mut call: IncomingCall, status: &str) {
    read_body_and_trailers(&mut call.body).await;
    let head = grpc_response_head();
    call.responder
        .send_response(head, false)
        .unwrap()
        .send_trailers(grpc_status_trailers(status))
        .unwrap();
}

#[test]
fn a_call_that_failed_before_any_message_is_retried_with_retry_non_idempotent() {
    let backend = Http2Backend::start(|call| async {
        if call.head.headers["x-outrigger-attempt"] == "1" {
            respond_without_a_message(call, "14").await
        } else {
            respond(call, "0").await
        }
    });
    let retry = "  defaults: {retry: {attempts: 1, backoff: 1ms, grpcCodes: [unavailable]}}\n";
    assert_eq!(
        connect_client(&start_grpc_sidecar(&backend, retry))
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "it may have run"
    );
    let sidecar = start_grpc_sidecar(
        &backend,
        &retry.replace("attempts", "retryNonIdempotent: true, attempts"),
    );
    let done = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
    assert_eq!(
        (done.grpc_status(), &done.body[..]),
        (Some("0"), &grpc_message(b"answer")[..])
    );
    assert_eq!(backend.request_heads().len(), 3);
}

#[test]
fn grpc_retry_pushback_decides_whether_and_when_a_call_is_retried() {
    for (pushback, expected) in [("1", 2), ("-1", 1), ("soon", 1), ("3600000", 1)] {
        let backend = Http2Backend::start(move |mut call| async move {
            let mut head = grpc_response_head();
            head.headers_mut().extend(grpc_status_trailers("14"));
            head.headers_mut()
                .insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
            call.responder.send_response(head, true).unwrap();
        });
        let sidecar = start_grpc_sidecar(
            &backend,
            "  defaults: {retry: {attempts: 1, backoff: 10s, maxBackoff: 10s, grpcCodes: [unavailable]}}\n",
        );
        assert_eq!(
            connect_client(&sidecar)
                .call_grpc("/shop.Payments/Charge", None)
                .grpc_status(),
            Some("14")
        );
        assert_eq!(backend.request_heads().len(), expected, "{pushback}");
    }
}

#[test]
fn the_grpc_timeout_is_forwarded_and_enforced() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.responder.poll_reset(context)).await;
    });
    let sidecar = start_grpc_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let done = client.call_grpc("/shop.Payments/Charge", Some("150m"));
    assert_eq!(
        (
            done.status,
            done.grpc_status(),
            done.header("x-outrigger-reason").split(':').next().unwrap()
        ),
        (200, Some("4"), "request_timeout")
    );
    let passed_on = backend.request_heads()[0].headers["grpc-timeout"]
        .to_str()
        .unwrap()
        .to_owned();
    let millis: u64 = passed_on.strip_suffix('m').unwrap().parse().unwrap();
    assert!(millis <= 150, "{passed_on}");
    client.call_grpc("/shop.Payments/Charge", Some("1u"));
    // The policy's own limit is until the head, and must not be taken for that of a stream.
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {timeouts: {request: 300ms, backendRequest: 300ms}}\n",
    );
    let before = backend.request_heads().len();
    assert_eq!(
        Http2Client::connect(sidecar.address("inbound"))
            .call_grpc("/shop.Payments/Charge", Some("1H"))
            .grpc_status(),
        Some("4")
    );
    let head = &backend.request_heads()[before].headers;
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
    let before = backend.request_heads().len();
    client.call_grpc("/shop.Payments/Charge", None);
    assert!(
        !backend.request_heads()[before]
            .headers
            .contains_key("grpc-timeout"),
        "who gave no end gets none"
    );
}

#[test]
fn a_stream_past_its_deadline_ends_with_deadline_exceeded_in_trailers() {
    let backend = Http2Backend::start(|mut call| async move {
        let mut stream = call
            .responder
            .send_response(grpc_response_head(), false)
            .unwrap();
        stream
            .send_data(grpc_message(b"first").into(), false)
            .unwrap();
        _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
    });
    let sidecar = start_grpc_sidecar(&backend, "");
    let done = connect_client(&sidecar).call_grpc("/shop.Feed/Watch", Some("200m"));
    assert_eq!(
        (
            &done.body[..],
            done.trailers.as_ref().unwrap()["grpc-status"]
                .to_str()
                .unwrap()
        ),
        (&grpc_message(b"first")[..], "4")
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["grpc_status"], 4);
}

#[test]
fn a_reset_stream_ends_with_unavailable_in_trailers_and_counts_as_a_failure() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = Http2Backend::start(move |mut call| {
        let gate = backend_gate.clone();
        async move {
            let mut stream = call
                .responder
                .send_response(grpc_response_head(), false)
                .unwrap();
            stream
                .send_data(grpc_message(b"first").into(), false)
                .unwrap();
            tokio::task::spawn_blocking(move || gate.wait_for_release())
                .await
                .unwrap();
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    });
    let sidecar = start_grpc_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    let done = client.runtime.block_on(async {
        let request = grpc_request_head("http://test/shop.Feed/Watch");
        let (response, _) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        let response = response.await.unwrap();
        // The answer has begun.
        gate.release_one();
        read_response(response).await.unwrap()
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
fn a_bidirectional_stream_is_forwarded_message_by_message() {
    let backend = Http2Backend::start(|mut call| async move {
        let head = grpc_response_head();
        let mut stream = call.responder.send_response(head, false).unwrap();
        while let Some(Ok(piece)) = call.body.data().await {
            _ = call.body.flow_control().release_capacity(piece.len());
            stream.send_data(piece, false).unwrap();
        }
        stream.send_trailers(grpc_status_trailers("0")).unwrap();
    });
    let sidecar = start_grpc_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        let request = grpc_request_head("http://test/shop.Chat/Talk");
        let (response, mut stream) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            stream
                .send_data(Bytes::from(grpc_message(word.as_bytes())), false)
                .unwrap();
            let echoed = body.data().await.unwrap().unwrap();
            _ = body.flow_control().release_capacity(echoed.len());
            assert_eq!(echoed, grpc_message(word.as_bytes()));
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
fn a_stream_that_starts_successfully_unejects_its_endpoint() {
    let is_ill = Arc::new(AtomicBool::new(true));
    let shared_is_ill = is_ill.clone();
    let failing = Http2Backend::start(move |mut call| {
        let is_ill = shared_is_ill.load(Ordering::SeqCst);
        async move {
            if is_ill {
                return respond_trailers_only(call, "14").await;
            }
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .header("x-stays", "open")
                .body(())
                .unwrap();
            let mut stream = call.responder.send_response(head, false).unwrap();
            stream
                .send_data(grpc_message(b"first").into(), false)
                .unwrap();
            // It does not end.
            _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
    });
    let good = Http2Backend::start(|call| respond(call, "0"));
    let backend_fields = "protocol: GRPC, outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &[
            format!("\"{}\"", failing.address),
            format!("\"{}\"", good.address),
        ],
        backend_fields,
        "",
    ));
    let client = connect_client(&sidecar);
    let ejection_state = || {
        sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0]["outlier"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("it is out", || {
        client.call_grpc("/shop.Feed/Watch", None);
        ejection_state() != "in"
    });
    is_ill.store(false, Ordering::SeqCst);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        // They are kept open, so that nothing but their beginning is known.
        let streams = RefCell::new(Vec::new());
        eventually_async("it is back", || async {
            let request = grpc_request_head("http://test/shop.Feed/Watch");
            let (response, _) = sender
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(request, true)
                .unwrap();
            let response = tokio::time::timeout(TEST_TIMEOUT, response)
                .await
                .unwrap()
                .unwrap();
            if response.headers().contains_key("x-stays") {
                streams.borrow_mut().push(response);
            } else {
                read_response(response).await.unwrap();
            }
            ejection_state() == "in"
        })
        .await;
        assert!(!streams.borrow().is_empty());
    });
}

#[test]
fn rate_limits_missing_routes_and_connect_failures_respond_with_grpc_statuses() {
    let backend = Http2Backend::start(|call| respond(call, "0"));
    let limited = "  defaults: {rateLimit: {local: {rules: [{name: few, limit: {requests: 1, unit: Hour}}]}}}\n";
    let sidecar = start_grpc_sidecar(&backend, limited);
    let client = connect_client(&sidecar);
    assert_eq!(client.call_grpc("/a/B", None).grpc_status(), Some("0"));
    assert_eq!(
        (
            client.call_grpc("/a/B", None).grpc_status(),
            client.call_grpc("/a/B", None).header("x-outrigger-reason")
        ),
        (Some("8"), "rate_limited:few")
    );
    let nowhere = Sidecar::start(&policy(&[ScriptedBackend::unused_address()], "").replace(
        "backendRefs",
        "matches: [{path: {value: /here}}], backendRefs",
    ));
    assert_eq!(
        Http2Client::connect(nowhere.address("inbound"))
            .call_grpc("/elsewhere/B", None)
            .grpc_status(),
        Some("12")
    );
    let refused = Sidecar::start(
        &policy(&[ScriptedBackend::unused_address()], "")
            .replace("]}\n  routes", "], protocol: GRPC}\n  routes"),
    );
    assert_eq!(
        Http2Client::connect(refused.address("inbound"))
            .call_grpc("/a/B", None)
            .grpc_status(),
        Some("14")
    );
}

#[test]
fn an_active_check_calls_the_grpc_health_service() {
    let served = Arc::new(std::sync::Mutex::new(1_u8));
    let status = served.clone();
    let backend = Http2Backend::start(move |mut call| {
        let status = *status.lock().unwrap();
        async move {
            assert_eq!(call.head.uri.path(), "/grpc.health.v1.Health/Check");
            let (request, _) = read_body_and_trailers(&mut call.body).await;
            assert_eq!(request, grpc_message(b"\x0a\x08shop.Pay"));
            let head = grpc_response_head();
            if status == 0 {
                let mut head = head;
                head.headers_mut().extend(HeaderMap::from_iter([(
                    "grpc-status".parse().unwrap(),
                    "5".parse().unwrap(),
                )]));
                call.responder.send_response(head, true).unwrap();
                return;
            }
            let mut stream = call.responder.send_response(head, false).unwrap();
            stream
                .send_data(grpc_message(&[8, status]).into(), false)
                .unwrap();
            stream.send_trailers(grpc_status_trailers("0")).unwrap();
        }
    });
    let check = ", healthCheck: {active: {type: GRPC, interval: 20ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, grpc: {service: shop.Pay}}}";
    let sidecar = start_grpc_sidecar_with_backend_fields(&backend, check, "");
    let endpoint = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
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
fn responses_out_of_order_on_one_connection_reach_their_own_calls() {
    // Two calls on one connection, whose answers come in the other order.
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = Http2Backend::start(move |call| {
        let gate = backend_gate.clone();
        async move {
            if call.head.uri.path() == "/slow/A" {
                tokio::task::spawn_blocking(move || gate.wait_for_release())
                    .await
                    .unwrap();
                respond(call, "9").await;
            } else {
                respond(call, "0").await;
            }
        }
    });
    let sidecar = start_grpc_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let sender = client.sender.clone();
    let slow = client.runtime.spawn(async move {
        let request = Request::post("http://test/slow/A")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, _) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        read_response(response.await.unwrap()).await.unwrap()
    });
    eventually("the slow one is there", || {
        backend.request_heads().len() == 1
    });
    assert_eq!(client.call_grpc("/fast/B", None).grpc_status(), Some("0"));
    gate.release_one();
    assert_eq!(
        client.runtime.block_on(slow).unwrap().grpc_status(),
        Some("9")
    );
}

#[test]
fn a_short_client_timeout_is_no_failure_of_the_backend() {
    let backend = Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.responder.poll_reset(context)).await;
    });
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {circuitBreaker: {consecutiveFailures: 2}}\n",
    );
    let client = connect_client(&sidecar);
    for _ in 0..6 {
        assert_eq!(
            client
                .call_grpc("/shop.Payments/Charge", Some("20m"))
                .grpc_status(),
            Some("4")
        );
    }
    assert_eq!(sidecar.breaker("app")["state"], "closed");
}

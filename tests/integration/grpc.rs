//! gRPC calls, whose status is in the trailers or in the head of a trailers-only response.

use std::{
    cell::RefCell,
    net::SocketAddr,
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
    policy::PolicyBuilder,
};

fn grpc_policy(endpoints: &[SocketAddr]) -> PolicyBuilder {
    PolicyBuilder::new(endpoints).backend_fields("protocol: GRPC")
}

fn start_grpc_sidecar(backend: &Http2Backend, sections: &str) -> Sidecar {
    Sidecar::start(&grpc_policy(&[backend.address]).sections(sections).build())
}

/// Returns a policy with one retry after 1 ms and further fields of `retry`.
fn retry_section(fields: &str) -> String {
    format!("  defaults: {{retry: {{attempts: 1, backoff: 1ms{fields}}}}}\n")
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

/// Responds with one message and this status in the trailers.
async fn respond(mut call: IncomingCall, status: &str) {
    read_body_and_trailers(&mut call.body).await;
    let head = grpc_response_head();
    let mut stream = call.responder.send_response(head, false).unwrap();
    stream
        .send_data(grpc_message(b"response").into(), false)
        .unwrap();
    stream.send_trailers(grpc_status_trailers(status)).unwrap();
}

/// Responds with this status and no message, trailers-only.
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
    let response = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
    assert_eq!(
        (response.status, response.grpc_status(), &response.body[..]),
        (200, Some("0"), &grpc_message(b"response")[..])
    );
    assert!(
        response.trailers.is_some(),
        "the status stays in the trailers"
    );
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
    let response = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
    assert_eq!(
        (
            response.head.get("grpc-status").unwrap().to_str().unwrap(),
            response.body.len(),
            response.trailers
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
            "  defaults: {retry: {mode: Off}, \
             circuitBreaker: {consecutiveFailures: 3, waitDurationInOpenState: 10s}}\n",
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
        let rejection = client.call_grpc("/shop.Payments/Charge", None);
        assert_eq!(
            (
                rejection.status,
                rejection.grpc_status(),
                rejection.header("x-outrigger-reason")
            ),
            (200, Some("14"), "breaker_open:app")
        );
        assert_eq!(
            rejection.header("grpc-message"),
            "the circuit breaker is open"
        );
        let pushback_ms: u64 = rejection.header("grpc-retry-pushback-ms").parse().unwrap();
        assert!((7_000..=12_000).contains(&pushback_ms), "{pushback_ms} ms");
        assert_eq!(backend.request_heads().len(), 3);
    }
}

#[test]
fn client_error_statuses_are_not_failures_of_the_backend() {
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
    let sidecar = start_grpc_sidecar(&backend, &retry_section(""));
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "the call may have been processed if the policy does not list its status"
    );
    let sidecar = start_grpc_sidecar(&backend, &retry_section(", grpcCodes: [unavailable]"));
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
        &retry_section(", grpcCodes: [unavailable, aborted]"),
    );
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("8")
    );
    assert_eq!(other.request_heads().len(), 1, "the status is not listed");
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

/// Sends the response head, and then this status in the trailers without a message.
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
    let sidecar = start_grpc_sidecar(&backend, &retry_section(", grpcCodes: [unavailable]"));
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14"),
        "the call may have been processed"
    );
    let sidecar = start_grpc_sidecar(
        &backend,
        &retry_section(", grpcCodes: [unavailable], retryNonIdempotent: true"),
    );
    let response = connect_client(&sidecar).call_grpc("/shop.Payments/Charge", None);
    assert_eq!(
        (response.grpc_status(), &response.body[..]),
        (Some("0"), &grpc_message(b"response")[..])
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
            "  defaults: {retry: {attempts: 1, backoff: 10s, maxBackoff: 10s, \
             grpcCodes: [unavailable]}}\n",
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

/// Receives calls and never responds.
fn unresponsive_backend() -> Http2Backend {
    Http2Backend::start(|mut call| async move {
        _ = std::future::poll_fn(|context| call.responder.poll_reset(context)).await;
    })
}

/// Returns the value of `grpc-timeout`, which the sidecar forwards in milliseconds.
fn grpc_timeout_ms(head: &HeaderMap) -> u64 {
    head["grpc-timeout"]
        .to_str()
        .unwrap()
        .strip_suffix('m')
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn the_grpc_timeout_is_forwarded_and_enforced() {
    let backend = unresponsive_backend();
    let sidecar = start_grpc_sidecar(&backend, "");
    let client = connect_client(&sidecar);
    let response = client.call_grpc("/shop.Payments/Charge", Some("150m"));
    let reason = response.header("x-outrigger-reason");
    assert_eq!(
        (
            response.status,
            response.grpc_status(),
            reason.split(':').next().unwrap()
        ),
        (200, Some("4"), "request_timeout")
    );
    let forwarded_ms = grpc_timeout_ms(&backend.request_heads()[0].headers);
    assert!(forwarded_ms <= 150, "{forwarded_ms}");
    let sent_before = backend.request_heads().len();
    client.call_grpc("/shop.Payments/Charge", None);
    assert!(
        !backend.request_heads()[sent_before]
            .headers
            .contains_key("grpc-timeout"),
        "a call without a timeout is forwarded without one"
    );
    assert_eq!(
        client
            .call_grpc("/shop.Payments/Charge", Some("1u"))
            .grpc_status(),
        Some("4"),
        "a timeout below one millisecond"
    );
}

/// The timeouts of a policy end at the response head. They do not bound the stream.
#[test]
fn the_timeouts_of_the_policy_do_not_shorten_the_forwarded_grpc_timeout() {
    let backend = unresponsive_backend();
    let sidecar = start_grpc_sidecar(
        &backend,
        "  defaults: {timeouts: {request: 300ms, backendRequest: 300ms}}\n",
    );
    assert_eq!(
        connect_client(&sidecar)
            .call_grpc("/shop.Payments/Charge", Some("1H"))
            .grpc_status(),
        Some("4")
    );
    let head = &backend.request_heads()[0].headers;
    let forwarded_ms = grpc_timeout_ms(head);
    assert!(
        (3_590_000..=3_600_000).contains(&forwarded_ms),
        "{forwarded_ms}"
    );
    assert!(
        head["x-outrigger-deadline-ms"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            <= 300
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
    let response = connect_client(&sidecar).call_grpc("/shop.Feed/Watch", Some("200m"));
    assert_eq!(
        (
            &response.body[..],
            response.trailers.as_ref().unwrap()["grpc-status"]
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
    let response = client.runtime.block_on(async {
        let request = grpc_request_head("http://test/shop.Feed/Watch");
        let (response, _) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        let response = response.await.unwrap();
        // The client has the response head.
        gate.release_one();
        read_response(response).await.unwrap()
    });
    assert_eq!(
        response.trailers.as_ref().unwrap()["grpc-status"]
            .to_str()
            .unwrap(),
        "14"
    );
    eventually("the attempt is counted", || {
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
    eventually("the attempt is counted as a success", || {
        sidecar.metric(r#"outrigger_attempts_total{backend="app",outcome="success"}"#) == 1.0
    });
}

/// Sends one message and leaves the stream open. The head marks the stream with `x-stays-open`.
async fn respond_with_an_open_stream(mut call: IncomingCall) {
    let mut head = grpc_response_head();
    head.headers_mut()
        .insert("x-stays-open", "true".parse().unwrap());
    let mut stream = call.responder.send_response(head, false).unwrap();
    stream
        .send_data(grpc_message(b"first").into(), false)
        .unwrap();
    _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
}

/// Fails each call until the switch is off, and then responds with open streams.
fn backend_with_open_streams() -> (Http2Backend, Arc<AtomicBool>) {
    let is_failing = Arc::new(AtomicBool::new(true));
    let shared_is_failing = is_failing.clone();
    let backend = Http2Backend::start(move |call| {
        let is_failing = shared_is_failing.load(Ordering::SeqCst);
        async move {
            if is_failing {
                respond_trailers_only(call, "14").await
            } else {
                respond_with_an_open_stream(call).await
            }
        }
    });
    (backend, is_failing)
}

#[test]
fn a_stream_that_starts_successfully_unejects_its_endpoint() {
    let (failing, is_failing) = backend_with_open_streams();
    let healthy = Http2Backend::start(|call| respond(call, "0"));
    let outlier_detection = "outlierDetection: {consecutive5xxErrors: 2, \
        baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(
        &grpc_policy(&[failing.address, healthy.address])
            .backend_fields(outlier_detection)
            .build(),
    );
    let client = connect_client(&sidecar);
    let ejection_state = || {
        sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0]["outlier"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("the endpoint is ejected", || {
        client.call_grpc("/shop.Feed/Watch", None);
        ejection_state() != "in"
    });
    is_failing.store(false, Ordering::SeqCst);
    let sender = client.sender.clone();
    client.runtime.block_on(async {
        // The streams stay open, so that only their start can uneject the endpoint.
        let streams = RefCell::new(Vec::new());
        eventually_async("the endpoint is unejected", || async {
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
            if response.headers().contains_key("x-stays-open") {
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
    let rate_limit = "  defaults: {rateLimit: {local: {rules: \
        [{name: few, limit: {requests: 1, unit: Hour}}]}}}\n";
    let sidecar = start_grpc_sidecar(&backend, rate_limit);
    let client = connect_client(&sidecar);
    assert_eq!(client.call_grpc("/a/B", None).grpc_status(), Some("0"));
    assert_eq!(
        (
            client.call_grpc("/a/B", None).grpc_status(),
            client.call_grpc("/a/B", None).header("x-outrigger-reason")
        ),
        (Some("8"), "rate_limited:few")
    );
    let without_route = Sidecar::start(
        &PolicyBuilder::new(&[ScriptedBackend::unused_address()])
            .route_fields("matches: [{path: {value: /here}}]")
            .build(),
    );
    assert_eq!(
        connect_client(&without_route)
            .call_grpc("/elsewhere/B", None)
            .grpc_status(),
        Some("12")
    );
    let unreachable = Sidecar::start(&grpc_policy(&[ScriptedBackend::unused_address()]).build());
    assert_eq!(
        connect_client(&unreachable)
            .call_grpc("/a/B", None)
            .grpc_status(),
        Some("14")
    );
}

#[test]
fn an_active_check_calls_the_grpc_health_service() {
    let serving_status = Arc::new(std::sync::Mutex::new(1_u8));
    let shared_serving_status = serving_status.clone();
    let backend = Http2Backend::start(move |mut call| {
        let status = *shared_serving_status.lock().unwrap();
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
    let check = "healthCheck: {active: {type: GRPC, interval: 20ms, timeout: 2s, \
        unhealthyThreshold: 1, healthyThreshold: 1, grpc: {service: shop.Pay}}}";
    let sidecar = Sidecar::start(
        &grpc_policy(&[backend.address])
            .backend_fields(check)
            .build(),
    );
    let endpoint = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("the endpoint is healthy", || {
        endpoint()["health"] == "healthy"
    });
    for (status, cause) in [
        (2, "NOT_SERVING"),
        (3, "SERVICE_UNKNOWN"),
        (0, "grpc status 5"),
    ] {
        *serving_status.lock().unwrap() = status;
        eventually("the cause of the failed check is reported", || {
            endpoint()["last_check"] == cause
        });
        assert_eq!(endpoint()["health"], "unhealthy");
    }
    *serving_status.lock().unwrap() = 1;
    eventually("the endpoint is healthy again", || {
        endpoint()["health"] == "healthy"
    });
}

#[test]
fn responses_out_of_order_on_one_connection_match_their_calls() {
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
    eventually("the slow call has arrived", || {
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
fn a_short_client_timeout_is_not_a_failure_of_the_backend() {
    let backend = unresponsive_backend();
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

/// Sends a request with `body_bytes` and leaves its stream open. Returns the gRPC status in the
/// response head, and whether the head ended the response.
fn status_of_an_open_call(client: &Http2Client, body_bytes: usize) -> (String, bool) {
    let sender = client.sender.clone();
    let call = async move {
        let request = Request::post("http://test/shop.Payments/Upload")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        // The peer may reset the stream before it has read the body.
        _ = stream.send_data(vec![0; body_bytes].into(), false);
        let response = response.await.unwrap();
        let status = response.headers()["grpc-status"].to_str().unwrap();
        let result = (status.to_owned(), response.body().is_end_stream());
        drop(stream);
        result
    };
    client.runtime.block_on(async {
        tokio::time::timeout(TEST_TIMEOUT, call)
            .await
            .expect("the response arrives")
    })
}

#[test]
fn a_trailers_only_response_is_one_frame_even_before_the_end_of_the_request() {
    let http2 = Http2Backend::start(|mut call| async move {
        let mut head = grpc_response_head();
        head.headers_mut().extend(grpc_status_trailers("7"));
        call.responder.send_response(head, true).unwrap();
    });
    let http1 = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send(concat!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n",
            "grpc-status: 7\r\ncontent-length: 0\r\n\r\n"
        ));
        connection.wait_for_close();
    });
    let to_http2 = start_grpc_sidecar(&http2, "");
    let to_http1 = Sidecar::start(&PolicyBuilder::new(&[http1.address]).build());
    for (sidecar, backend) in [(&to_http2, "HTTP/2"), (&to_http1, "HTTP/1")] {
        for body_bytes in [0, 1, 1 << 20] {
            let client = connect_client(sidecar);
            assert_eq!(
                status_of_an_open_call(&client, body_bytes),
                ("7".to_owned(), true),
                "{body_bytes} bytes to {backend}"
            );
        }
    }
}

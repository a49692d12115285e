//! Degraded responses: fallbacks and stale responses of a failing backend.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::support::{
    Client, ReceivedResponse, ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    http2::{Http2Backend, Http2Client, grpc_status_trailers},
    policy::{PolicyBuilder, policy},
};

/// Returns a fallback with a fixed response. The fields end with a comma.
fn fallback_response(fields: &str) -> String {
    format!(
        "fallback: {{{fields}response: {{statusCode: 200, contentType: application/json, \
         body: '{{\"items\":[]}}'}}}}"
    )
}

fn defaults_section(fields: &str) -> String {
    format!("  defaults: {{{fields}}}\n")
}

/// Starts a sidecar with the backend `app` at this address and another backend `spare`.
fn start_with_spare(app: SocketAddr, spare: &ScriptedBackend, defaults: &str) -> Sidecar {
    Sidecar::start(
        &PolicyBuilder::new(&[app])
            .scripted_backend("spare", spare)
            .sections(&defaults_section(defaults))
            .build(),
    )
}

/// Sends this response until the switch is off, and then 503.
fn backend_with_health_switch(healthy: &'static str) -> (ScriptedBackend, Arc<AtomicBool>) {
    let is_healthy = Arc::new(AtomicBool::new(true));
    let shared_is_healthy = is_healthy.clone();
    (
        ScriptedBackend::responding_with(move |_| {
            if shared_is_healthy.load(Ordering::SeqCst) {
                healthy.to_owned()
            } else {
                response(503, "failing")
            }
        }),
        is_healthy,
    )
}

#[test]
fn a_fallback_response_is_sent_as_configured_and_marked() {
    let backend = ScriptedBackend::responding_with(|_| response(503, "failing"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section(&fallback_response("")),
    ));
    let response = sidecar.get("/");
    assert_eq!(
        (
            response.status,
            response.text().as_str(),
            response.header("content-type")
        ),
        (200, "{\"items\":[]}", Some("application/json"))
    );
    assert_eq!(
        response.reason(),
        format!("retries_exhausted:{}", backend.address)
    );
    assert!(
        response
            .header("proxy-status")
            .unwrap()
            .starts_with("outrigger; error=")
    );
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="response"}"#),
        1.0
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["status"], 200);
}

#[test]
fn each_fallback_trigger_matches_only_its_own_failures() {
    let unreachable = ScriptedBackend::unused_address();
    let silent = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let failing = ScriptedBackend::responding_with(|_| response(503, "failing"));
    let broken = ScriptedBackend::responding_with(|_| response(500, "a bug"));
    let table = [
        (unreachable, "RetriesExhausted", "", 200),
        (unreachable, "Timeout", "", 502),
        (
            silent.address,
            "Timeout",
            "timeouts: {backendRequest: 40ms}, ",
            200,
        ),
        (
            silent.address,
            "RetriesExhausted",
            "timeouts: {backendRequest: 40ms}, ",
            504,
        ),
        (failing.address, "RetriesExhausted", "", 200),
        (failing.address, "CircuitOpen", "", 503),
        (broken.address, "RetriesExhausted", "", 500),
        (
            broken.address,
            "RetriesExhausted",
            "retry: {attempts: 0, codes: [500]}, ",
            200,
        ),
    ];
    for (address, trigger, others, status) in table {
        let sections = format!(
            "{others}{}",
            fallback_response(&format!("triggers: [{trigger}], "))
        );
        let sidecar = Sidecar::start(&policy(&[address], &defaults_section(&sections)));
        assert_eq!(sidecar.get("/").status, status, "{trigger} of {address}");
    }
    let sections = format!(
        "circuitBreaker: {{consecutiveFailures: 1}}, {}",
        fallback_response("triggers: [CircuitOpen], ")
    );
    let sidecar = Sidecar::start(&policy(&[failing.address], &defaults_section(&sections)));
    assert_eq!(sidecar.get("/").status, 503, "the breaker is still closed");
    let rejected = sidecar.get("/");
    assert_eq!(
        (rejected.status, rejected.reason()),
        (200, "breaker_open:app")
    );
}

#[test]
fn a_fallback_backend_receives_the_same_request_under_its_own_policy() {
    let (failing, healthy) = (
        ScriptedBackend::responding_with(|_| response(503, "failing")),
        ScriptedBackend::responding_with(|request| {
            ok_response(&format!(
                "{} {}",
                request.request_line(),
                request.body.len()
            ))
        }),
    );
    let sidecar = start_with_spare(
        failing.address,
        &healthy,
        "retry: {attempts: 0, codes: [503]}, fallback: {backendRef: {name: spare}}",
    );
    let put = |path: &str| {
        sidecar
            .client()
            .send(format!(
                "PUT {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\norder"
            ))
            .read_response()
    };
    let response = put("/pay?x=1");
    assert_eq!(
        (response.status, response.text().as_str(), response.reason()),
        (200, "PUT /pay?x=1 HTTP/1.1 5", "")
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["backend"], "spare");
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="backend"}"#),
        1.0
    );
    assert_eq!(
        healthy.requests()[0].header("x-outrigger-attempt"),
        Some("1"),
        "attempts are counted per backend"
    );
    drop(healthy);
    eventually("the fallback backend is unreachable too", || {
        sidecar.get("/").status == 502
    });
}

#[test]
fn a_post_that_may_have_been_processed_is_not_sent_to_the_fallback_backend() {
    let healthy = ScriptedBackend::healthy();
    let resetting = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.reset();
    });
    let failing = ScriptedBackend::responding_with(|_| response(503, "failing"));
    for (address, status) in [(resetting.address, 502), (failing.address, 503)] {
        let sidecar = start_with_spare(address, &healthy, "fallback: {backendRef: {name: spare}}");
        assert_eq!(sidecar.client().post("/pay", "order").status, status);
        assert_eq!(healthy.requests().len(), 0);
    }
    let unreachable = start_with_spare(
        ScriptedBackend::unused_address(),
        &healthy,
        "fallback: {backendRef: {name: spare}}",
    );
    assert_eq!(
        unreachable.client().post("/pay", "order").text(),
        "hello",
        "no endpoint has received the request"
    );
    let sidecar = start_with_spare(
        failing.address,
        &healthy,
        "retry: {attempts: 0, retryNonIdempotent: true}, fallback: {backendRef: {name: spare}}",
    );
    assert_eq!(
        sidecar.client().post("/pay", "order").text(),
        "hello",
        "the retry policy allows it"
    );
}

#[test]
fn a_fallback_backend_has_its_own_breaker_hedging_and_limits() {
    let (failing, healthy) = (
        ScriptedBackend::responding_with(|_| response(503, "failing")),
        ScriptedBackend::healthy(),
    );
    let sidecar = start_with_spare(
        failing.address,
        &healthy,
        "circuitBreaker: {scope: Route, consecutiveFailures: 2}, \
         hedging: {hedgingDelay: 10s}, \
         fallback: {backendRef: {name: spare}}, \
         connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}",
    );
    for _ in 0..6 {
        assert_eq!(sidecar.get("/").text(), "hello");
        // The permit is released after the end of the response.
        eventually("nothing is in flight", || sidecar.in_flight() == 0);
    }
    assert_eq!(
        (
            sidecar.breaker("route:in")["state"].as_str(),
            sidecar.breaker("route:in/spare")["state"].as_str()
        ),
        (Some("open"), Some("closed"))
    );
    let limits = sidecar.admin_json("/api/v1/limits");
    let in_flight_of = |name: &str| {
        limits["concurrency"]
            .as_array()
            .unwrap()
            .iter()
            .find(|limit| limit["name"] == name)
            .unwrap()["in_flight"]
            .clone()
    };
    assert_eq!(
        (in_flight_of("app"), in_flight_of("spare")),
        (0.into(), 0.into())
    );
}

#[test]
fn a_request_to_the_fallback_backend_retains_no_permit_of_the_first_backend() {
    let (slow, gate) = ScriptedBackend::gated_with("slow");
    let failing = ScriptedBackend::responding_with(|_| response(503, "failing"));
    let sidecar = start_with_spare(
        failing.address,
        &slow,
        "fallback: {backendRef: {name: spare}}, \
         connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}",
    );
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    eventually("the fallback backend receives the request", || {
        slow.requests().len() == 1
    });
    let rejected = sidecar.get("/");
    assert_eq!(
        (rejected.status, rejected.reason()),
        (503, "concurrency_limit:spare"),
        "the limit of the fallback backend applies"
    );
    assert_eq!(
        failing.requests().len(),
        2,
        "the first backend still receives each request"
    );
    gate.release_one();
    assert_eq!(waiting.read_response().text(), "slow");
}

#[test]
fn a_fallback_is_bounded_by_the_remaining_client_deadline() {
    let silent = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let healthy = ScriptedBackend::healthy();
    let sidecar = start_with_spare(
        silent.address,
        &healthy,
        "timeouts: {backendRequest: 60ms}, fallback: {backendRef: {name: spare}}",
    );
    let send_with_deadline = |deadline: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: test\r\nx-outrigger-deadline-ms: {deadline}\r\n\r\n"
            ))
            .read_response()
    };
    assert_eq!(
        send_with_deadline("30").reason().split(':').next(),
        Some("request_timeout"),
        "the deadline of the client has passed"
    );
    assert_eq!(healthy.requests().len(), 0);
    assert_eq!(send_with_deadline("9000").text(), "hello");
    assert!(
        healthy.requests()[0]
            .header("x-outrigger-deadline-ms")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            <= 60
    );
}

#[test]
fn a_grpc_call_with_a_listed_status_is_sent_to_the_fallback_backend() {
    let failing = Http2Backend::start(|mut call| async move {
        let mut head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        head.headers_mut().extend(grpc_status_trailers("14"));
        call.responder.send_response(head, true).unwrap();
    });
    let healthy = Http2Backend::start(|mut call| async move {
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        call.responder
            .send_response(head, false)
            .unwrap()
            .send_trailers(grpc_status_trailers("0"))
            .unwrap();
    });
    let spare = format!("protocol: GRPC, endpoints: [\"{}\"]", healthy.address);
    for (retry, expected) in [
        ("retry: {attempts: 0, grpcCodes: [unavailable]}, ", "0"),
        ("", "14"),
    ] {
        let defaults = format!("{retry}fallback: {{backendRef: {{name: spare}}}}");
        let sidecar = Sidecar::start(
            &PolicyBuilder::new(&[failing.address])
                .backend_fields("protocol: GRPC")
                .backend("spare", &spare)
                .sections(&defaults_section(&defaults))
                .build(),
        );
        let client = Http2Client::connect(sidecar.address("inbound"));
        assert_eq!(
            client
                .call_grpc("/shop.Payments/Charge", None)
                .grpc_status(),
            Some(expected),
            "only a listed status counts as not processed"
        );
    }
}

#[test]
fn a_shadow_fallback_forwards_the_failure_and_counts_it() {
    let backend = ScriptedBackend::responding_with(|_| response(503, "failing"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section(&fallback_response("mode: Shadow, ")),
    ));
    assert_eq!(sidecar.get("/").text(), "failing");
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="shadow"}"#),
        1.0
    );
}

const CACHEABLE_RESPONSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\
    cache-control: max-age=1\r\nconnection: x-hop\r\nx-hop: 1\r\netag: \"7\"\r\n\
    content-length: 4\r\n\r\npage";

#[test]
fn a_stale_response_is_served_and_marked_while_the_backend_fails() {
    let (backend, is_healthy) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section("staleIfError: {}"),
    ));
    assert_eq!(sidecar.get("/a").header("cache-status"), None);
    is_healthy.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/a");
    assert_eq!(
        (
            stale.status,
            stale.text().as_str(),
            stale.header("etag"),
            stale.header("x-hop")
        ),
        (200, "page", Some("\"7\""), None)
    );
    assert_eq!(
        (stale.reason(), stale.header("cache-status")),
        (
            "stale:503",
            Some("outrigger; fwd=stale; fwd-status=503; detail=stale-if-error")
        )
    );
    assert!(stale.header("age").unwrap().parse::<u64>().unwrap() < 60);
    let mut client = sidecar.client();
    let (status, head) = client
        .send("HEAD /a HTTP/1.1\r\nhost: test\r\n\r\n")
        .read_head()
        .unwrap();
    assert!(
        status == 200 && head.contains("content-length: 4"),
        "{head}"
    );
    assert_eq!(
        client.get("/a").text(),
        "page",
        "the response to HEAD has no body"
    );
}

#[test]
fn a_stale_response_is_served_only_for_the_same_path_query_and_host() {
    let (backend, is_healthy) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section("staleIfError: {}"),
    ));
    sidecar.get("/a");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
    for (path, host) in [("/b", "test"), ("/a?x", "test"), ("/a", "other")] {
        let other = sidecar
            .client()
            .send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
            .read_response();
        assert_eq!(
            other.text(),
            "failing",
            "{path} of {host} is cached separately"
        );
    }
}

#[test]
fn a_reload_retains_the_stale_responses() {
    let (backend, _) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section("staleIfError: {}"),
    ));
    sidecar.get("/a");
    assert_eq!(
        sidecar
            .reload(&policy(
                &[ScriptedBackend::unused_address()],
                &defaults_section("staleIfError: {}")
            ))
            .status,
        200
    );
    let stale = sidecar.get("/a");
    assert_eq!(
        (stale.reason(), stale.header("cache-status")),
        (
            "stale:connect_failed",
            Some("outrigger; hit; detail=stale-if-error")
        )
    );
}

fn get_with_header(sidecar: &Sidecar, field: &str) -> ReceivedResponse {
    sidecar
        .client()
        .send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{field}\r\n\r\n"))
        .read_response()
}

#[test]
fn private_or_invalidated_responses_are_not_served_stale() {
    let (backend, is_healthy) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section("staleIfError: {}"),
    ));
    let send_with_header = |field: &str| get_with_header(&sidecar, field);
    send_with_header("authorization: Bearer 7");
    send_with_header("cookie: user=7");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(
        sidecar.get("/a").text(),
        "failing",
        "private responses are not cached"
    );
    is_healthy.store(true, Ordering::SeqCst);
    sidecar.get("/a");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
    assert_eq!(
        send_with_header("authorization: Bearer 7").text(),
        "failing",
        "a request with credentials does not get a cached response"
    );
    assert_eq!(
        send_with_header("cache-control: no-cache").text(),
        "failing"
    );
    assert_eq!(sidecar.client().post("/a", "x").text(), "failing");
    assert_eq!(
        sidecar.get("/a").text(),
        "page",
        "a failed POST does not invalidate the cached response"
    );
    is_healthy.store(true, Ordering::SeqCst);
    assert_eq!(sidecar.client().post("/a", "x").status, 200);
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(
        sidecar.get("/a").text(),
        "failing",
        "a successful POST invalidates the cached response"
    );
}

/// Sends a response that names the user and the host until the switch is off, and then 503.
fn backend_that_varies_by_user() -> (ScriptedBackend, Arc<AtomicBool>) {
    let is_healthy = Arc::new(AtomicBool::new(true));
    let shared_is_healthy = is_healthy.clone();
    let backend = ScriptedBackend::responding_with(move |request| {
        if !shared_is_healthy.load(Ordering::SeqCst) {
            return response(503, "failing");
        }
        let user: Vec<&str> = request
            .head
            .lines()
            .filter_map(|line| {
                line.strip_prefix("x-user: ")
                    .or_else(|| line.strip_prefix("X-User: "))
            })
            .collect();
        let body = format!(
            "for {} by {}",
            user.join("+"),
            request.header("x-forwarded-host").unwrap_or_default()
        );
        format!(
            "HTTP/1.1 200 OK\r\nvary: x-user\r\nx-secret: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    });
    (backend, is_healthy)
}

#[test]
fn stale_responses_are_keyed_by_vary_and_forwarded_host() {
    let (backend, is_healthy) = backend_that_varies_by_user();
    let filter = "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: \
        {remove: [x-secret], set: [{name: x-kind, value: page}]}}]";
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .route_fields(filter)
            .sections(&defaults_section("staleIfError: {}"))
            .build(),
    );
    let send_with_headers = |fields: &str| {
        sidecar
            .client()
            .send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{fields}\r\n"))
            .read_response()
    };
    let (user_1, user_2) = (
        "x-user: lang\r\nx-user: 1\r\n",
        "x-user: lang\r\nx-user: 2\r\n",
    );
    assert_eq!(send_with_headers(user_1).text(), "for lang+1 by test");
    assert_eq!(
        send_with_headers("x-forwarded-host: evil\r\n").text(),
        "for  by evil"
    );
    is_healthy.store(false, Ordering::SeqCst);
    let stale = send_with_headers(user_1);
    assert_eq!(
        (
            stale.text().as_str(),
            stale.header("x-secret"),
            stale.header("x-kind")
        ),
        ("for lang+1 by test", None, Some("page")),
        "the filters of the route apply"
    );
    assert_eq!(
        send_with_headers(user_2).text(),
        "failing",
        "the key contains each value of the header"
    );
    assert_eq!(
        send_with_headers("").text(),
        "failing",
        "the key contains the forwarded host"
    );
    assert_eq!(
        send_with_headers("x-forwarded-host: evil\r\n").text(),
        "for  by evil"
    );
}

#[test]
fn an_uncacheable_request_does_not_evict_the_cached_response() {
    let (backend, is_healthy) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section("staleIfError: {}"),
    ));
    let send_with_header = |field: &str| get_with_header(&sidecar, field);
    sidecar.get("/a");
    for field in [
        "cookie: user=7",
        "cache-control: no-store",
        "range: bytes=0-1",
    ] {
        assert_eq!(send_with_header(field).status, 200);
    }
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
}

#[test]
fn a_response_degraded_by_another_sidecar_is_not_cached() {
    let (backend, is_healthy) = backend_with_health_switch(
        "HTTP/1.1 200 OK\r\nx-outrigger-reason: breaker_open:app\r\ncontent-length: 2\r\n\r\n[]",
    );
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .outbound()
            .sections(&defaults_section("staleIfError: {}"))
            .build(),
    );
    let get = || Client::connect(sidecar.address("outbound")).get("/a");
    assert_eq!(get().text(), "[]");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(get().text(), "failing");
}

#[test]
fn an_oversized_or_truncated_response_is_not_cached() {
    let (long, is_healthy) = backend_with_health_switch(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\n12345\r\n6\r\n678901\r\n0\r\n\r\n",
    );
    let sidecar = Sidecar::start(&policy(
        &[long.address],
        &defaults_section("staleIfError: {maxEntryBytes: 10}"),
    ));
    assert_eq!(sidecar.get("/").text(), "12345678901");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/").text(), "failing");

    let (short, is_healthy) = backend_with_health_switch(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n",
    );
    let sidecar = Sidecar::start(&policy(
        &[short.address],
        &defaults_section("staleIfError: {maxEntryBytes: 10}"),
    ));
    assert_eq!(sidecar.get("/").text(), "1234567890");
    is_healthy.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/");
    assert_eq!(
        (stale.text().as_str(), stale.header("transfer-encoding")),
        ("1234567890", None)
    );

    let broken = ScriptedBackend::start(|mut connection| {
        if connection.number > 1 {
            return connection.reset();
        }
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345");
    });
    let sidecar = Sidecar::start(&policy(
        &[broken.address],
        &defaults_section("staleIfError: {}, retry: {attempts: 0, retryOn: []}"),
    ));
    assert!(!sidecar.get("/").is_complete);
    assert_eq!(sidecar.get("/").status, 502);
}

#[test]
fn a_stale_response_takes_precedence_over_the_fallback() {
    let (backend, is_healthy) = backend_with_health_switch(CACHEABLE_RESPONSE);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults_section(&format!("staleIfError: {{}}, {}", fallback_response(""))),
    ));
    sidecar.get("/known");
    is_healthy.store(false, Ordering::SeqCst);
    assert_eq!(
        (
            sidecar.get("/known").text().as_str(),
            sidecar.get("/unknown").text().as_str()
        ),
        ("page", "{\"items\":[]}")
    );
}

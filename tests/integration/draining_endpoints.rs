//! Draining endpoints: they are not selected, and requests that they reject are sent elsewhere.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    eventually,
    http2::{
        Http2Backend, Http2Client, grpc_message, grpc_status_trailers, read_body_and_trailers,
    },
    policy::{PolicyBuilder, policy},
};

const SERVING: usize = 0;
const DRAINING: usize = 1;
const REJECTING: usize = 2;

/// An app behind a sidecar whose stage is one of the constants above. `ttl` is that of the drain
/// header, in seconds.
fn instance_with_stage(name: &'static str, ttl: u32) -> (ScriptedBackend, Arc<AtomicUsize>) {
    let stage = Arc::new(AtomicUsize::new(SERVING));
    let shared_stage = stage.clone();
    let backend =
        ScriptedBackend::responding_with(move |_| match shared_stage.load(Ordering::SeqCst) {
            SERVING => ok_response(name),
            DRAINING => format!(
                "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl={ttl}\r\n\
                 connection: close\r\ncontent-length: {}\r\n\r\n{name}",
                name.len()
            ),
            _ => format!(
                "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-draining: 1; ttl={ttl}\r\n\
                 x-outrigger-reason: draining\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            ),
        });
    (backend, stage)
}

/// Returns a policy with these endpoints, and round robin.
fn round_robin_policy(backends: &[&ScriptedBackend]) -> PolicyBuilder {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    PolicyBuilder::new(&addresses).backend_fields("loadBalancer: {type: RoundRobin}")
}

const RETRIES_OFF: &str = "  defaults: {retry: {mode: Off}}\n";

/// Sends requests, and returns the name of the instance that responds to each. The status replaces
/// the name if it is not 200.
fn response_names(sidecar: &Sidecar, count: usize) -> Vec<String> {
    let mut client = sidecar.client();
    let responses = (0..count).map(|_| client.get("/"));
    responses
        .map(|response| {
            if response.status == 200 {
                response.text()
            } else {
                response.status.to_string()
            }
        })
        .collect()
}

#[test]
fn a_draining_endpoint_receives_no_requests_during_its_ttl() {
    let ((draining, stage), (serving, _)) = (
        instance_with_stage("draining", 60),
        instance_with_stage("serving", 60),
    );
    let sidecar = Sidecar::start(&round_robin_policy(&[&draining, &serving]).build());
    assert!(response_names(&sidecar, 10).contains(&"draining".to_owned()));
    stage.store(DRAINING, Ordering::SeqCst);
    let responses = response_names(&sidecar, 200);
    assert_eq!(
        responses.iter().filter(|name| *name == "draining").count(),
        1,
        "only the response with the drain header is from the draining endpoint"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("drains and is not selected for 60s")),
        "{events:?}"
    );
    assert_eq!(
        sidecar.metric("outrigger_endpoint_departures_total{backend=\"app\"}"),
        1.0
    );
}

#[test]
fn a_draining_endpoint_is_selected_again_after_its_ttl() {
    let ((draining, stage), (serving, _)) = (
        instance_with_stage("draining", 1),
        instance_with_stage("serving", 1),
    );
    let sidecar = Sidecar::start(&round_robin_policy(&[&draining, &serving]).build());
    let reaches_draining = || response_names(&sidecar, 2).contains(&"draining".to_owned());
    stage.store(DRAINING, Ordering::SeqCst);
    eventually("a response states the drain", reaches_draining);
    stage.store(SERVING, Ordering::SeqCst);
    eventually("the endpoint is selected again", reaches_draining);
    // The events are emitted shortly after the changes that they report.
    for expected in [
        "drains and is not selected for 1s",
        "is selectable again: its ttl has expired",
    ] {
        eventually(expected, || {
            sidecar
                .events()
                .iter()
                .any(|event| event.contains(expected))
        });
    }
    assert_eq!(
        sidecar.metric("outrigger_endpoint_departures_total{backend=\"app\"}"),
        1.0
    );
}

#[test]
fn a_request_rejected_unprocessed_is_sent_to_another_endpoint_and_counts_as_no_failure() {
    let ((rejecting, stage), (serving, _)) = (
        instance_with_stage("rejecting", 60),
        instance_with_stage("serving", 60),
    );
    let sections = "  defaults: {retry: {mode: Off}, circuitBreaker: {consecutiveFailures: 1}}\n";
    let policy = round_robin_policy(&[&rejecting, &serving])
        .backend_fields("outlierDetection: {consecutive5xxErrors: 1}")
        .sections(sections);
    let sidecar = Sidecar::start(&policy.build());
    stage.store(REJECTING, Ordering::SeqCst);
    let mut client = sidecar.client();
    for number in 0..20 {
        let response = client.post("/", &format!("payment {number}"));
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "serving")
        );
    }
    assert_eq!(rejecting.requests().len(), 1);
    assert_eq!(
        serving
            .requests()
            .iter()
            .map(|request| String::from_utf8_lossy(&request.body).into_owned())
            .collect::<Vec<_>>(),
        (0..20)
            .map(|number| format!("payment {number}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(sidecar.breaker("app")["state"], "closed");
    assert_eq!(sidecar.breaker("app")["failed"], 0);
    assert_eq!(
        sidecar.metric("outrigger_requests_repicked_total{backend=\"app\"}"),
        1.0
    );
    assert_eq!(
        sidecar.metric("outrigger_retries_total{backend=\"app\"}"),
        0.0,
        "the second selection is not a retry"
    );
    let decision = &sidecar.admin_json("/api/v1/decisions")[0]["steps"][0];
    assert_eq!(decision["kind"], "repicked", "{decision}");
}

#[test]
fn draining_endpoints_are_selected_if_all_drain_and_their_rejection_is_forwarded() {
    let ((one, stage), (other, other_stage)) = (
        instance_with_stage("one", 60),
        instance_with_stage("other", 60),
    );
    let policy = round_robin_policy(&[&one, &other]).sections(RETRIES_OFF);
    let sidecar = Sidecar::start(&policy.build());
    stage.store(DRAINING, Ordering::SeqCst);
    other_stage.store(DRAINING, Ordering::SeqCst);
    let responses = response_names(&sidecar, 20);
    assert!(
        !responses.contains(&"503".to_owned()) && responses.contains(&"one".to_owned()),
        "draining endpoints serve requests: {responses:?}"
    );
    stage.store(REJECTING, Ordering::SeqCst);
    other_stage.store(REJECTING, Ordering::SeqCst);
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.status, rejection.header("x-outrigger-draining")),
        (503, None),
        "all endpoints reject the request, and this instance does not drain"
    );
}

#[test]
fn the_drain_header_of_an_endpoint_is_not_forwarded_to_clients() {
    let (draining, stage) = instance_with_stage("draining", 60);
    let gateway = Sidecar::start(&policy(&[draining.address], ""));
    stage.store(DRAINING, Ordering::SeqCst);
    let response = gateway.get("/");
    assert_eq!(
        (
            response.text().as_str(),
            response.header("x-outrigger-draining")
        ),
        ("draining", None)
    );
}

#[test]
fn an_active_check_detects_that_an_endpoint_drains_and_returns() {
    let ((draining, stage), (serving, _)) = (
        instance_with_stage("draining", 600),
        instance_with_stage("serving", 600),
    );
    let policy = round_robin_policy(&[&draining, &serving]).backend_fields(
        "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, \
         http: {path: /healthz}}}",
    );
    let sidecar = Sidecar::start(&policy.build());
    let reaches_draining = || response_names(&sidecar, 2).contains(&"draining".to_owned());
    eventually("both endpoints receive requests", reaches_draining);
    for stage_now in [DRAINING, REJECTING] {
        stage.store(stage_now, Ordering::SeqCst);
        eventually("the drain is logged", || {
            sidecar
                .events()
                .iter()
                .any(|event| event.contains(" drains "))
        });
        assert_eq!(response_names(&sidecar, 20), vec!["serving"; 20]);
    }
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("unhealthy")),
        "a draining endpoint is not unhealthy"
    );
    stage.store(SERVING, Ordering::SeqCst);
    eventually(
        "the endpoint is selected again before its TTL expires",
        reaches_draining,
    );
}

#[test]
fn a_grpc_call_rejected_unprocessed_is_sent_to_another_endpoint() {
    let draining = Http2Backend::start(|mut call| async move {
        let rejection = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14");
        let rejection = rejection
            .header("x-outrigger-reason", "draining")
            .header("x-outrigger-draining", "1; ttl=60")
            .body(())
            .unwrap();
        call.responder.send_response(rejection, true).unwrap();
    });
    let serving = Http2Backend::start(|mut call| async move {
        read_body_and_trailers(&mut call.body).await;
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut stream = call.responder.send_response(head, false).unwrap();
        stream
            .send_data(grpc_message(b"paid").into(), false)
            .unwrap();
        stream.send_trailers(grpc_status_trailers("0")).unwrap();
    });
    let policy = PolicyBuilder::new(&[draining.address, serving.address])
        .backend_fields("protocol: GRPC, loadBalancer: {type: RoundRobin}")
        .sections(RETRIES_OFF);
    let sidecar = Sidecar::start(&policy.build());
    let client = Http2Client::connect(sidecar.address("inbound"));
    for _ in 0..10 {
        let response = client.call_grpc("/shop.Pay/Pay", None);
        assert_eq!(
            (response.grpc_status(), &response.body[..]),
            (Some("0"), &grpc_message(b"paid")[..]),
            "{response:?}"
        );
    }
    assert_eq!(
        (
            draining.request_heads().len(),
            serving.request_heads().len()
        ),
        (1, 10)
    );
}

#[test]
fn a_hedged_request_rejected_unprocessed_is_sent_to_another_endpoint() {
    let ((one, one_stage), (two, two_stage), (three, _)) = (
        instance_with_stage("one", 60),
        instance_with_stage("two", 60),
        instance_with_stage("three", 60),
    );
    let sections = "  defaults: {retry: {mode: Off}, \
                    hedging: {maxAttempts: 2, hedgingDelay: 10s}, \
                    retryConstraint: {budget: {percent: 0}, \
                    minRetryRate: {count: 0, interval: 1s}}}\n";
    let policy = round_robin_policy(&[&one, &two, &three]).sections(sections);
    let sidecar = Sidecar::start(&policy.build());
    one_stage.store(REJECTING, Ordering::SeqCst);
    two_stage.store(REJECTING, Ordering::SeqCst);
    assert_eq!(
        response_names(&sidecar, 10),
        vec!["three"; 10],
        "the retry budget does not apply"
    );
    assert!(one.requests().len() <= 1 && two.requests().len() <= 1);
}

#[test]
fn a_drain_rejection_forwarded_by_an_endpoint_is_not_sent_to_another_endpoint() {
    // The gateway has processed the request, and forwards the rejection of its own backend.
    let gateway = || {
        ScriptedBackend::responding_with(|_| {
            "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-reason: draining\r\n\
             content-length: 0\r\n\r\n"
                .to_owned()
        })
    };
    let (one, other) = (gateway(), gateway());
    let sidecar = Sidecar::start(&policy(&[one.address, other.address], RETRIES_OFF));
    assert_eq!(sidecar.client().post("/book", "once").status, 503);
    assert_eq!(one.requests().len() + other.requests().len(), 1);
}

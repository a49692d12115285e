//! What a caller does when an endpoint says that it is leaving.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    eventually,
    http2::{
        Http2Backend, Http2Client, grpc_message, grpc_status_trailers, read_body_and_trailers,
    },
    policy::{policy, policy_with_backend_fields, quoted_addresses},
};

const SERVING: usize = 0;
const DRAINING: usize = 1;
const REJECTING: usize = 2;

/// An app behind a sidecar that serves, serves and says that it leaves, or refuses because it has left.
fn instance_with_stage(name: &'static str, ttl: u32) -> (ScriptedBackend, Arc<AtomicUsize>) {
    let stage = Arc::new(AtomicUsize::new(SERVING));
    let shared_stage = stage.clone();
    let backend = ScriptedBackend::responding_with(move |_| {
        match shared_stage.load(Ordering::SeqCst) {
            SERVING => ok_response(name),
            DRAINING => format!(
                "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl={ttl}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}",
                name.len()
            ),
            _ => format!(
                "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-draining: 1; ttl={ttl}\r\nx-outrigger-reason: draining\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            ),
        }
    });
    (backend, stage)
}

/// How many of so many requests each name answered.
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
fn a_draining_endpoint_receives_no_requests_until_its_ttl_expires() {
    let ((draining, stage), (serving, _)) = (
        instance_with_stage("leaving", 1),
        instance_with_stage("staying", 1),
    );
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&draining, &serving]),
        "loadBalancer: {type: RoundRobin}",
        "",
    ));
    assert!(response_names(&sidecar, 10).contains(&"leaving".to_owned()));
    stage.store(DRAINING, Ordering::SeqCst);
    let notified_at = Instant::now();
    let responses = response_names(&sidecar, 200);
    assert!(
        notified_at.elapsed() < Duration::from_secs(1),
        "the machine is too slow for this test: {:?}",
        notified_at.elapsed()
    );
    assert_eq!(
        responses.iter().filter(|name| *name == "leaving").count(),
        1,
        "one request brings the news, and none comes after it"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("drains and is not selected for 1s")),
        "{events:?}"
    );
    stage.store(SERVING, Ordering::SeqCst);
    eventually("it is asked again", || {
        response_names(&sidecar, 2).contains(&"leaving".to_owned())
    });
    assert_eq!(
        sidecar.metric("outrigger_endpoint_departures_total{backend=\"app\"}"),
        1.0
    );
}

#[test]
fn a_request_rejected_unprocessed_is_reselected_and_counts_as_no_failure() {
    let ((rejecting, stage), (serving, _)) = (
        instance_with_stage("refusing", 60),
        instance_with_stage("staying", 60),
    );
    let sections = "  defaults: {retry: {mode: Off}, circuitBreaker: {consecutiveFailures: 1}}\n";
    let extra = "loadBalancer: {type: RoundRobin}, outlierDetection: {consecutive5xxErrors: 1}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&rejecting, &serving]),
        extra,
        sections,
    ));
    stage.store(REJECTING, Ordering::SeqCst);
    let mut client = sidecar.client();
    for number in 0..20 {
        let response = client.post("/", &format!("payment {number}"));
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "staying")
        );
    }
    assert_eq!(rejecting.requests().len(), 1);
    assert_eq!(
        serving
            .requests()
            .iter()
            .map(|seen| String::from_utf8_lossy(&seen.body).into_owned())
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
        "that is no retry"
    );
    let refused = &sidecar.admin_json("/api/v1/decisions")[0]["steps"][0];
    assert_eq!(refused["kind"], "repicked", "{refused}");
}

#[test]
fn draining_endpoints_are_used_if_no_other_is_left_and_their_rejection_is_forwarded() {
    let ((one, stage), (other, other_stage)) = (
        instance_with_stage("one", 60),
        instance_with_stage("other", 60),
    );
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&one, &other]),
        "loadBalancer: {type: RoundRobin}",
        "  defaults: {retry: {mode: Off}}\n",
    ));
    stage.store(DRAINING, Ordering::SeqCst);
    other_stage.store(DRAINING, Ordering::SeqCst);
    let responses = response_names(&sidecar, 20);
    assert!(
        !responses.contains(&"503".to_owned()) && responses.contains(&"one".to_owned()),
        "they still serve: {responses:?}"
    );
    stage.store(REJECTING, Ordering::SeqCst);
    other_stage.store(REJECTING, Ordering::SeqCst);
    let refused = sidecar.get("/");
    assert_eq!(
        (refused.status, refused.header("x-outrigger-draining")),
        (503, None),
        "each was asked, and this instance does not leave"
    );
}

#[test]
fn the_drain_header_of_an_endpoint_is_not_forwarded_to_clients() {
    let (draining, stage) = instance_with_stage("leaving", 60);
    let gateway = Sidecar::start(&policy(&[draining.address], ""));
    stage.store(DRAINING, Ordering::SeqCst);
    let response = gateway.get("/");
    assert_eq!(
        (
            response.text().as_str(),
            response.header("x-outrigger-draining")
        ),
        ("leaving", None)
    );
}

#[test]
fn an_active_check_detects_that_an_endpoint_drains_and_returns() {
    let ((draining, stage), (serving, _)) = (
        instance_with_stage("leaving", 600),
        instance_with_stage("staying", 600),
    );
    let check = "loadBalancer: {type: RoundRobin}, healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&draining, &serving]),
        check,
        "",
    ));
    let reaches_draining = || response_names(&sidecar, 2).contains(&"leaving".to_owned());
    eventually("both are asked", reaches_draining);
    for stage_now in [DRAINING, REJECTING] {
        stage.store(stage_now, Ordering::SeqCst);
        eventually("it is left alone", || {
            sidecar
                .events()
                .iter()
                .any(|event| event.contains(" drains "))
        });
        assert!(!response_names(&sidecar, 20).contains(&"leaving".to_owned()));
    }
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("unhealthy")),
        "who leaves is not ill"
    );
    stage.store(SERVING, Ordering::SeqCst);
    eventually(
        "it is asked again, long before its time is over",
        reaches_draining,
    );
}

#[test]
fn a_grpc_call_rejected_unprocessed_is_sent_to_another_endpoint() {
    let draining = Http2Backend::start(|mut call| async move {
        let refusal = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14");
        let refusal = refusal
            .header("x-outrigger-reason", "draining")
            .header("x-outrigger-draining", "1; ttl=60")
            .body(())
            .unwrap();
        call.responder.send_response(refusal, true).unwrap();
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
    let endpoints = [
        format!("\"{}\"", draining.address),
        format!("\"{}\"", serving.address),
    ];
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &endpoints,
        "protocol: GRPC, loadBalancer: {type: RoundRobin}",
        "  defaults: {retry: {mode: Off}}\n",
    ));
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
    let sections = "  defaults: {retry: {mode: Off}, hedging: {maxAttempts: 2, hedgingDelay: 10s}, retryConstraint: {budget: {percent: 0}, minRetryRate: {count: 0, interval: 1s}}}\n";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&one, &two, &three]),
        "loadBalancer: {type: RoundRobin}",
        sections,
    ));
    one_stage.store(REJECTING, Ordering::SeqCst);
    two_stage.store(REJECTING, Ordering::SeqCst);
    assert_eq!(
        response_names(&sidecar, 10),
        vec!["three"; 10],
        "whatever the budget says"
    );
    assert!(one.requests().len() <= 1 && two.requests().len() <= 1);
}

#[test]
fn a_drain_rejection_relayed_by_an_endpoint_is_not_reselected() {
    // A gateway that has booked, asked somebody else, and hands on what that one said.
    let gateway = || {
        ScriptedBackend::responding_with(|_| {
            "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-reason: draining\r\ncontent-length: 0\r\n\r\n".to_owned()
        })
    };
    let (one, other) = (gateway(), gateway());
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&one, &other]),
        "",
        "  defaults: {retry: {mode: Off}}\n",
    ));
    assert_eq!(sidecar.client().post("/book", "once").status, 503);
    assert_eq!(one.requests().len() + other.requests().len(), 1);
}

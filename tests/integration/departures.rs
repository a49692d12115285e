//! What a caller does when an endpoint says that it is leaving.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Sidecar,
    backend::ok,
    eventually,
    http2::{Http2Backend, Http2Client, collect, ended, message},
    sidecar::{addresses, policy, policy_with},
};

const SERVING: usize = 0;
const LEAVING: usize = 1;
const REFUSING: usize = 2;

/// An app behind a sidecar that serves, serves and says that it leaves, or refuses because it has left.
fn instance(name: &'static str, ttl: u32) -> (Backend, Arc<AtomicUsize>) {
    let stage = Arc::new(AtomicUsize::new(SERVING));
    let there = stage.clone();
    let backend = Backend::answering(move |_| match there.load(Ordering::SeqCst) {
        SERVING => ok(name),
        LEAVING => format!(
            "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl={ttl}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        ),
        _ => format!(
            "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-draining: 1; ttl={ttl}\r\nx-outrigger-reason: draining\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ),
    });
    (backend, stage)
}

/// How many of so many requests each name answered.
fn spread(sidecar: &Sidecar, count: usize) -> Vec<String> {
    let mut client = sidecar.client();
    let answers = (0..count).map(|_| client.get("/"));
    answers
        .map(|answer| {
            if answer.status == 200 {
                answer.text()
            } else {
                answer.status.to_string()
            }
        })
        .collect()
}

#[test]
fn an_endpoint_that_is_leaving_gets_nothing_more_until_its_time_is_over() {
    let ((leaving, stage), (staying, _)) = (instance("leaving", 1), instance("staying", 1));
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&leaving, &staying]),
        "loadBalancer: {type: RoundRobin}",
        "",
    ));
    assert!(spread(&sidecar, 10).contains(&"leaving".to_owned()));
    stage.store(LEAVING, Ordering::SeqCst);
    let told = Instant::now();
    let answers = spread(&sidecar, 200);
    assert!(
        told.elapsed() < Duration::from_secs(1),
        "the machine is too slow for this test: {:?}",
        told.elapsed()
    );
    assert_eq!(
        answers.iter().filter(|name| *name == "leaving").count(),
        1,
        "one request brings the news, and none comes after it"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("is leaving, and is left alone for 1s")),
        "{events:?}"
    );
    stage.store(SERVING, Ordering::SeqCst);
    eventually("it is asked again", || {
        spread(&sidecar, 2).contains(&"leaving".to_owned())
    });
    assert_eq!(
        sidecar.metric("outrigger_endpoint_departures_total{backend=\"app\"}"),
        1.0
    );
}

#[test]
fn what_was_refused_unprocessed_goes_to_another_endpoint_and_counts_against_nobody() {
    let ((refusing, stage), (staying, _)) = (instance("refusing", 60), instance("staying", 60));
    let sections = "  defaults: {retry: {mode: Off}, circuitBreaker: {consecutiveFailures: 1}}\n";
    let extra = "loadBalancer: {type: RoundRobin}, outlierDetection: {consecutive5xxErrors: 1}";
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&refusing, &staying]),
        extra,
        sections,
    ));
    stage.store(REFUSING, Ordering::SeqCst);
    let mut client = sidecar.client();
    for number in 0..20 {
        let answer = client.post("/", &format!("payment {number}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "staying"));
    }
    assert_eq!(refusing.seen().len(), 1);
    assert_eq!(
        staying
            .seen()
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
    let refused = &sidecar.json("/api/v1/decisions")[0]["steps"][0];
    assert_eq!(refused["kind"], "repicked", "{refused}");
}

#[test]
fn an_endpoint_that_is_leaving_is_better_than_none_and_its_refusal_is_passed_on() {
    let ((one, stage), (other, other_stage)) = (instance("one", 60), instance("other", 60));
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&one, &other]),
        "loadBalancer: {type: RoundRobin}",
        "  defaults: {retry: {mode: Off}}\n",
    ));
    stage.store(LEAVING, Ordering::SeqCst);
    other_stage.store(LEAVING, Ordering::SeqCst);
    let answers = spread(&sidecar, 20);
    assert!(
        !answers.contains(&"503".to_owned()) && answers.contains(&"one".to_owned()),
        "they still serve: {answers:?}"
    );
    stage.store(REFUSING, Ordering::SeqCst);
    other_stage.store(REFUSING, Ordering::SeqCst);
    let refused = sidecar.get("/");
    assert_eq!(
        (refused.status, refused.header("x-outrigger-draining")),
        (503, None),
        "each was asked, and this instance does not leave"
    );
}

#[test]
fn the_sign_of_one_instance_is_not_that_of_who_stands_before_it() {
    let (leaving, stage) = instance("leaving", 60);
    let gateway = Sidecar::start(&policy(&[leaving.address], ""));
    stage.store(LEAVING, Ordering::SeqCst);
    let answer = gateway.get("/");
    assert_eq!(
        (
            answer.text().as_str(),
            answer.header("x-outrigger-draining")
        ),
        ("leaving", None)
    );
}

#[test]
fn a_check_says_that_an_endpoint_leaves_and_that_it_is_back() {
    let ((leaving, stage), (staying, _)) = (instance("leaving", 600), instance("staying", 600));
    let check = "loadBalancer: {type: RoundRobin}, healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&leaving, &staying]), check, ""));
    let spreads = || spread(&sidecar, 2).contains(&"leaving".to_owned());
    eventually("both are asked", spreads);
    for stage_now in [LEAVING, REFUSING] {
        stage.store(stage_now, Ordering::SeqCst);
        eventually("it is left alone", || {
            sidecar
                .events()
                .iter()
                .any(|event| event.contains("is leaving"))
        });
        assert!(!spread(&sidecar, 20).contains(&"leaving".to_owned()));
    }
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("Unhealthy")),
        "who leaves is not ill"
    );
    stage.store(SERVING, Ordering::SeqCst);
    eventually("it is asked again, long before its time is over", spreads);
}

#[test]
fn a_call_of_grpc_that_was_refused_unprocessed_goes_to_another_endpoint() {
    let leaving = Http2Backend::start(|mut call| async move {
        let refusal = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14");
        let refusal = refusal
            .header("x-outrigger-reason", "draining")
            .header("x-outrigger-draining", "1; ttl=60")
            .body(())
            .unwrap();
        call.respond.send_response(refusal, true).unwrap();
    });
    let staying = Http2Backend::start(|mut call| async move {
        collect(&mut call.body).await;
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut stream = call.respond.send_response(head, false).unwrap();
        stream.send_data(message(b"paid").into(), false).unwrap();
        stream.send_trailers(ended("0")).unwrap();
    });
    let endpoints = [
        format!("\"{}\"", leaving.address),
        format!("\"{}\"", staying.address),
    ];
    let sidecar = Sidecar::start(&policy_with(
        &endpoints,
        "protocol: GRPC, loadBalancer: {type: RoundRobin}",
        "  defaults: {retry: {mode: Off}}\n",
    ));
    let client = Http2Client::connect(sidecar.address("inbound"));
    for _ in 0..10 {
        let answer = client.call("/shop.Pay/Pay", None);
        assert_eq!(
            (answer.grpc_status(), &answer.body[..]),
            (Some("0"), &message(b"paid")[..]),
            "{answer:?}"
        );
    }
    assert_eq!((leaving.heads().len(), staying.heads().len()), (1, 10));
}

#[test]
fn a_hedged_request_that_was_refused_unprocessed_goes_to_another_endpoint_too() {
    let ((one, one_stage), (two, two_stage), (three, _)) = (
        instance("one", 60),
        instance("two", 60),
        instance("three", 60),
    );
    let sections = "  defaults: {retry: {mode: Off}, hedging: {maxAttempts: 2, hedgingDelay: 10s}, retryConstraint: {budget: {percent: 0}, minRetryRate: {count: 0, interval: 1s}}}\n";
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&one, &two, &three]),
        "loadBalancer: {type: RoundRobin}",
        sections,
    ));
    one_stage.store(REFUSING, Ordering::SeqCst);
    two_stage.store(REFUSING, Ordering::SeqCst);
    assert_eq!(
        spread(&sidecar, 10),
        vec!["three"; 10],
        "whatever the budget says"
    );
    assert!(one.seen().len() <= 1 && two.seen().len() <= 1);
}

#[test]
fn words_that_came_from_further_away_do_not_make_a_request_run_twice() {
    // A gateway that has booked, asked somebody else, and hands on what that one said.
    let gateway = || {
        Backend::answering(|_| {
            "HTTP/1.1 503 Service Unavailable\r\nx-outrigger-reason: draining\r\ncontent-length: 0\r\n\r\n".to_owned()
        })
    };
    let (one, other) = (gateway(), gateway());
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&one, &other]),
        "",
        "  defaults: {retry: {mode: Off}}\n",
    ));
    assert_eq!(sidecar.client().post("/book", "once").status, 503);
    assert_eq!(one.seen().len() + other.seen().len(), 1);
}

//! Why a request got what it got.

use std::process::Command;

use serde_json::Value;

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::policy,
};

/// Asks under an id and a trace.
fn ask(sidecar: &Sidecar, id: &str) -> u16 {
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    sidecar
        .client()
        .send(format!(
            "GET /pay?card=7 HTTP/1.1\r\nhost: shop\r\nx-request-id: {id}\r\n{trace}\r\n\r\n"
        ))
        .answer()
        .status
}

/// What is known of it.
fn known(sidecar: &Sidecar, id: &str) -> Value {
    eventually("it is remembered", || {
        sidecar.json(&format!("/api/v1/decisions?request={id}"))[0].is_object()
    });
    sidecar.json(&format!("/api/v1/decisions?request={id}"))[0].clone()
}

fn steps(decided: &Value) -> Vec<(String, String)> {
    let steps = decided["steps"].as_array().unwrap().iter();
    steps
        .map(|step| {
            (
                step["kind"].as_str().unwrap().to_owned(),
                step["text"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn kinds(decided: &Value) -> Vec<String> {
    steps(decided).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn a_refusal_is_told_with_its_numbers_by_request_and_by_trace() {
    let backend = Backend::answering(|_| answer(500, "broken"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 3}}\n",
    ));
    for _ in 0..3 {
        ask(&sidecar, "before");
    }
    assert_eq!(ask(&sidecar, "refused"), 503);
    let decided = known(&sidecar, "refused");
    assert_eq!(
        (
            &decided["status"],
            &decided["reason"],
            &decided["route"],
            &decided["backend"]
        ),
        (
            &503.into(),
            &"breaker_open:app".into(),
            &"in".into(),
            &"app".into()
        )
    );
    assert_eq!(
        (&decided["host"], &decided["path"]),
        (&"shop".into(), &"/pay".into()),
        "never the query"
    );
    let [(kind, text)] = &steps(&decided)[..] else {
        panic!("{decided}")
    };
    assert_eq!(kind, "refused");
    assert!(
        text.starts_with("refused: breaker_open by app: it is open for ")
            && text.contains(", 3 of 3 calls failed, 0 slow, next change in "),
        "{text}"
    );
    let of_trace = sidecar.json("/api/v1/decisions?trace=0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        of_trace.as_array().unwrap().len(),
        1,
        "what passed is not of it"
    );
    assert_eq!(
        sidecar.json("/api/v1/decisions?trace=nobody"),
        serde_json::json!([])
    );
}

#[test]
fn each_failed_attempt_and_what_was_made_of_it_is_told() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let backend = Backend::answering(move |_| {
        if count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 1 {
            answer(503, "not yet")
        } else {
            ok("there")
        }
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {retry: {attempts: 1, codes: [503], backoff: 1ms}}\n",
    ));
    assert_eq!(ask(&sidecar, "retried"), 200);
    let decided = known(&sidecar, "retried");
    assert_eq!(
        (kinds(&decided), &decided["attempts"], &decided["reason"]),
        (
            vec!["attempt_failed".to_owned(), "retried".to_owned()],
            &2.into(),
            &"".into()
        )
    );
    assert!(
        steps(&decided)[0]
            .1
            .starts_with(&format!("attempt 1 at {} failed after ", backend.address)),
        "{decided}"
    );

    let nowhere = Sidecar::start(&policy(&[Backend::nowhere()], ""));
    assert_eq!(ask(&nowhere, "lost"), 502);
    let decided = known(&nowhere, "lost");
    assert_eq!(
        kinds(&decided),
        [
            "attempt_failed",
            "retried",
            "attempt_failed",
            "retried",
            "attempt_failed",
            "not_retried",
            "refused"
        ]
    );
    assert!(steps(&decided)[5].1.starts_with("not tried again: all attempts are used: 0 of 0 retries made and 2 that never reached it, "), "{decided}");
}

#[test]
fn every_way_to_be_refused_has_its_numbers() {
    let (backend, silent) = (
        Backend::healthy(),
        Backend::start(|mut connection| {
            connection.request();
            connection.wait_for_close();
        }),
    );
    let short = "timeouts: {request: 30ms, backendRequest: 30ms}";
    let table = [
        (
            backend.address,
            "rateLimit: {local: {rules: [{name: few, limit: {requests: 1, unit: Hour}}]}}"
                .to_owned(),
            "rate_limited by few: the limit is 1 ",
        ),
        (silent.address, short.to_owned(), "timeouts.request is 30ms"),
        (
            silent.address,
            "timeouts: {backendRequest: 30ms}".to_owned(),
            "timeouts.backendRequest is 30ms",
        ),
        (
            silent.address,
            format!("fallback: {{triggers: [Timeout], response: {{}}}}, {short}"),
            "answered instead: what the fallback says",
        ),
    ];
    for (address, section, expected) in table {
        let sidecar = Sidecar::start(&policy(&[address], &format!("  defaults: {{{section}}}\n")));
        ask(&sidecar, "first");
        ask(&sidecar, "second");
        let decided = known(&sidecar, "second");
        assert!(
            steps(&decided)
                .iter()
                .any(|(_, text)| text.contains(expected)),
            "{section}: {decided}"
        );
    }
    let sidecar = Sidecar::start(&policy(
        &[silent.address],
        "  defaults: {connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}}\n",
    ));
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("one is in", || {
        sidecar.json("/api/v1/limits")["concurrency"][0]["in_flight"] == 1
    });
    ask(&sidecar, "refused");
    assert_eq!(
        steps(&known(&sidecar, "refused"))[0].1,
        "refused: concurrency_limit by app: 1 of 1 are worked on, 1 are in flight, 0 of 0 wait"
    );
}

#[test]
fn what_a_stranger_sends_is_remembered_up_to_a_length() {
    let sidecar = Sidecar::start(&policy(&[Backend::nowhere()], ""));
    let path = format!("/{}", "x".repeat(20_000));
    sidecar.client().send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\nx-request-id: long\r\ntraceparent: 00-{}-1-01\r\n\r\n", "y".repeat(5_000))).answer();
    let decided = known(&sidecar, "long");
    assert_eq!(
        (
            decided["path"].as_str().unwrap().len(),
            decided["trace_id"].as_str().unwrap()
        ),
        (256, "")
    );
}

#[test]
fn shadow_explains_as_enforce_would_and_what_simply_passed_is_not_kept() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {rateLimit: {local: {rules: [{name: few, mode: Shadow, limit: {requests: 1, unit: Hour}}]}}}\n",
    ));
    assert_eq!(
        (ask(&sidecar, "first"), ask(&sidecar, "second")),
        (200, 200)
    );
    let decided = known(&sidecar, "second");
    assert_eq!(
        (kinds(&decided), &decided["status"]),
        (vec!["would_refuse".to_owned()], &200.into())
    );
    assert_eq!(
        sidecar.json("/api/v1/decisions?request=first"),
        serde_json::json!([])
    );
    assert_eq!(
        sidecar.json("/api/v1/decisions").as_array().unwrap().len(),
        1
    );
    assert_eq!(
        sidecar.json("/api/v1/decisions?limit=0"),
        serde_json::json!([])
    );
}

#[test]
fn explain_tells_one_request_in_plain_words() {
    let sidecar = Sidecar::start(&policy(&[Backend::nowhere()], ""));
    ask(&sidecar, "lost-1");
    known(&sidecar, "lost-1");
    let admin = sidecar.app().admin_address().to_string();
    let explain = |id: &str| {
        Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["explain", "--request", id, "--admin", &admin])
            .output()
            .unwrap()
    };
    let told = explain("lost-1");
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.status.success()
            && text.contains("GET shop/pay\n  route in, backend app, 3 attempts\n"),
        "{text}"
    );
    assert!(
        text.contains("not tried again: all attempts are used")
            && text.contains("answered with 502 because of connect_failed:"),
        "{text}"
    );
    let unknown = explain("nobody");
    assert!(
        unknown.status.code() == Some(1)
            && String::from_utf8(unknown.stderr)
                .unwrap()
                .contains("nothing is known of the request nobody")
    );
    ask(&sidecar, "Root=1-67/a+b=");
    known(&sidecar, "Root%3D1-67%2Fa%2Bb%3D");
    assert!(
        explain("Root=1-67/a+b=").status.success(),
        "whatever a client calls its request"
    );
    assert_eq!(explain("").status.code(), Some(64));
}

//! The decision trace of a request, in the admin API and in `outrigger explain`.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::policy,
};

/// Sends a request with this request id and a trace id.
fn send_traced_request(sidecar: &Sidecar, id: &str) -> u16 {
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    sidecar
        .client()
        .send(format!(
            "GET /pay?card=7 HTTP/1.1\r\nhost: shop\r\nx-request-id: {id}\r\n{trace}\r\n\r\n"
        ))
        .read_response()
        .status
}

/// Waits until the request is recorded, and returns its record.
fn wait_for_trace(sidecar: &Sidecar, id: &str) -> Value {
    eventually("the request is recorded", || {
        sidecar.admin_json(&format!("/api/v1/decisions?request={id}"))[0].is_object()
    });
    sidecar.admin_json(&format!("/api/v1/decisions?request={id}"))[0].clone()
}

fn trace_steps(decision: &Value) -> Vec<(String, String)> {
    let steps = decision["steps"].as_array().unwrap().iter();
    steps
        .map(|step| {
            (
                step["kind"].as_str().unwrap().to_owned(),
                step["text"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn step_kinds(decision: &Value) -> Vec<String> {
    trace_steps(decision)
        .into_iter()
        .map(|(kind, _)| kind)
        .collect()
}

#[test]
fn a_rejection_is_recorded_with_its_values_by_request_id_and_trace_id() {
    let backend = ScriptedBackend::responding_with(|_| response(500, "broken"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 3}}\n",
    ));
    for _ in 0..3 {
        send_traced_request(&sidecar, "failed");
    }
    assert_eq!(send_traced_request(&sidecar, "rejected"), 503);
    let decision = wait_for_trace(&sidecar, "rejected");
    assert_eq!(
        (
            &decision["status"],
            &decision["reason"],
            &decision["route"],
            &decision["backend"]
        ),
        (
            &503.into(),
            &"breaker_open:app".into(),
            &"in".into(),
            &"app".into()
        )
    );
    assert_eq!(
        (&decision["host"], &decision["path"]),
        (&"shop".into(), &"/pay".into()),
        "the query is not recorded"
    );
    let [(kind, text)] = &trace_steps(&decision)[..] else {
        panic!("{decision}")
    };
    assert_eq!(kind, "refused");
    assert!(
        text.starts_with("rejected: breaker_open by app: it is open for ")
            && text.contains(", 3 of 3 calls failed, 0 slow, next change in "),
        "{text}"
    );
    let with_trace_id =
        sidecar.admin_json("/api/v1/decisions?trace=0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        with_trace_id.as_array().unwrap().len(),
        1,
        "admitted requests are not recorded"
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/decisions?trace=unknown"),
        serde_json::json!([])
    );
}

#[test]
fn each_failed_attempt_and_its_retry_decision_is_recorded() {
    let count = AtomicUsize::new(0);
    let backend = ScriptedBackend::responding_with(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) < 1 {
            response(503, "failing")
        } else {
            ok_response("hello")
        }
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {retry: {attempts: 1, codes: [503], backoff: 1ms}}\n",
    ));
    assert_eq!(send_traced_request(&sidecar, "retried"), 200);
    let decision = wait_for_trace(&sidecar, "retried");
    assert_eq!(
        (
            step_kinds(&decision),
            &decision["attempts"],
            &decision["reason"]
        ),
        (
            vec!["attempt_failed".to_owned(), "retried".to_owned()],
            &2.into(),
            &"".into()
        )
    );
    assert!(
        trace_steps(&decision)[0]
            .1
            .starts_with(&format!("attempt 1 at {} failed after ", backend.address)),
        "{decision}"
    );

    let unreachable = Sidecar::start(&policy(&[ScriptedBackend::unused_address()], ""));
    assert_eq!(send_traced_request(&unreachable, "failed"), 502);
    let decision = wait_for_trace(&unreachable, "failed");
    assert_eq!(
        step_kinds(&decision),
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
    assert!(
        trace_steps(&decision)[5].1.starts_with(
            "not retried: all attempts are used: 0 of 0 retries, 2 unprocessed attempts, "
        ),
        "{decision}"
    );
}

#[test]
fn every_kind_of_rejection_records_its_values() {
    let (backend, silent) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::start(|mut connection| {
            connection.read_request();
            connection.wait_for_close();
        }),
    );
    let timeouts = "timeouts: {request: 30ms, backendRequest: 30ms}";
    let table = [
        (
            backend.address,
            "rateLimit: {local: {rules: [{name: few, limit: {requests: 1, unit: Hour}}]}}"
                .to_owned(),
            "rate_limited by few: the limit is 1 ",
        ),
        (
            silent.address,
            timeouts.to_owned(),
            "timeouts.request is 30ms",
        ),
        (
            silent.address,
            "timeouts: {backendRequest: 30ms}".to_owned(),
            "timeouts.backendRequest is 30ms",
        ),
        (
            silent.address,
            format!("fallback: {{triggers: [Timeout], response: {{}}}}, {timeouts}"),
            "response replaced by the fixed response of the fallback",
        ),
    ];
    for (address, section, expected) in table {
        let sidecar = Sidecar::start(&policy(&[address], &format!("  defaults: {{{section}}}\n")));
        send_traced_request(&sidecar, "first");
        send_traced_request(&sidecar, "second");
        let decision = wait_for_trace(&sidecar, "second");
        assert!(
            trace_steps(&decision)
                .iter()
                .any(|(_, text)| text.contains(expected)),
            "{section}: {decision}"
        );
    }
    let sidecar = Sidecar::start(&policy(
        &[silent.address],
        "  defaults: {connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}}\n",
    ));
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first request is in flight", || {
        sidecar.admin_json("/api/v1/limits")["concurrency"][0]["in_flight"] == 1
    });
    send_traced_request(&sidecar, "rejected");
    assert_eq!(
        trace_steps(&wait_for_trace(&sidecar, "rejected"))[0].1,
        "rejected: concurrency_limit by app: 1 of 1 await a response, 1 are in flight, \
         0 of 0 are pending"
    );
}

#[test]
fn client_input_is_recorded_up_to_a_bounded_length() {
    let sidecar = Sidecar::start(&policy(&[ScriptedBackend::unused_address()], ""));
    let path = format!("/{}", "x".repeat(20_000));
    let trace_id = "y".repeat(5_000);
    sidecar
        .client()
        .send(format!(
            "GET {path} HTTP/1.1\r\nhost: shop\r\nx-request-id: long\r\n\
             traceparent: 00-{trace_id}-1-01\r\n\r\n"
        ))
        .read_response();
    let decision = wait_for_trace(&sidecar, "long");
    assert_eq!(
        (
            decision["path"].as_str().unwrap().len(),
            decision["trace_id"].as_str().unwrap()
        ),
        (256, "")
    );
}

#[test]
fn shadow_rejections_are_recorded_and_ordinary_requests_are_not() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {rateLimit: {local: {rules: \
         [{name: few, mode: Shadow, limit: {requests: 1, unit: Hour}}]}}}\n",
    ));
    assert_eq!(
        (
            send_traced_request(&sidecar, "first"),
            send_traced_request(&sidecar, "second")
        ),
        (200, 200)
    );
    let decision = wait_for_trace(&sidecar, "second");
    assert_eq!(
        (step_kinds(&decision), &decision["status"]),
        (vec!["would_refuse".to_owned()], &200.into())
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/decisions?request=first"),
        serde_json::json!([])
    );
    assert_eq!(
        sidecar
            .admin_json("/api/v1/decisions")
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/decisions?limit=0"),
        serde_json::json!([])
    );
}

#[test]
fn explain_describes_the_decisions_for_one_request() {
    let sidecar = Sidecar::start(&policy(&[ScriptedBackend::unused_address()], ""));
    send_traced_request(&sidecar, "failed-1");
    wait_for_trace(&sidecar, "failed-1");
    let admin = sidecar.app().admin_address().to_string();
    let explain = |id: &str| {
        Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["explain", "--request", id, "--admin", &admin])
            .output()
            .unwrap()
    };
    let output = explain("failed-1");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success()
            && text.contains("GET shop/pay\n  route in, backend app, 3 attempts\n"),
        "{text}"
    );
    assert!(
        text.contains("not retried: all attempts are used")
            && text.contains("response 502 because of connect_failed:"),
        "{text}"
    );
    let unknown = explain("unknown");
    assert!(
        unknown.status.code() == Some(1)
            && String::from_utf8(unknown.stderr)
                .unwrap()
                .contains("no decision of the request unknown is recorded")
    );
    send_traced_request(&sidecar, "Root=1-67/a+b=");
    wait_for_trace(&sidecar, "Root%3D1-67%2Fa%2Bb%3D");
    assert!(
        explain("Root=1-67/a+b=").status.success(),
        "the request id may contain reserved characters of a URL"
    );
    assert_eq!(explain("").status.code(), Some(64));
}

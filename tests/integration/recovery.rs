//! The first recovery: a breaker that stays open.

use std::sync::atomic::Ordering;

use crate::support::{ScriptedBackend, Sidecar, backend::response, eventually, policy::policy};

fn recovery_sections(hook: &str, extra: &str) -> String {
    format!(
        "  defaults: {{circuitBreaker: {{consecutiveFailures: 1, waitDurationInOpenState: 20ms, maxWaitDurationInOpenState: 20ms, recoveryRamp: 0s, permittedNumberOfCallsInHalfOpenState: 1}}}}\n  \
         recovery:\n    - name: stuck\n      trigger: {{type: CircuitOpenFor, backend: app, duration: 50ms}}\n      ladder:\n        - {{action: {{type: Webhook, url: \"{hook}\"}}}}\n        \
         - {{action: {{type: FailReadiness}}, undo: OnRecovery}}\n      cooldown: 1s\n{extra}"
    )
}

#[test]
fn a_breaker_that_stays_open_calls_the_webhook_and_fails_readiness_until_it_closes() {
    let (backend, is_broken) = ScriptedBackend::switchable();
    let hook = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &recovery_sections(&format!("http://{}/restart?a=b", hook.address), ""),
    ));
    assert_eq!(sidecar.call_admin("GET", "/readyz").status, 200);
    sidecar.get("/");
    eventually("the webhook is called", || hook.requests().len() == 1);
    let call = &hook.requests()[0];
    assert_eq!(
        (call.request_line(), call.header("content-type")),
        ("POST /restart?a=b HTTP/1.1", Some("application/json"))
    );
    let payload: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(
        (
            payload["recovery"].as_str(),
            payload["backend"].as_str(),
            payload["rung"].as_u64()
        ),
        (Some("stuck"), Some("app"), Some(1))
    );
    eventually("the second rung fails readiness", || {
        sidecar.call_admin("GET", "/readyz").status == 503
    });
    let why = sidecar.call_admin("GET", "/readyz").text();
    assert!(
        why.contains("recovery-stuck") && why.contains("has not been closed for"),
        "{why}"
    );

    is_broken.store(false, Ordering::SeqCst);
    eventually("it is ready again", || {
        sidecar.get("/");
        sidecar.call_admin("GET", "/readyz").status == 200
    });
    for words in [
        "took rung 1, webhook",
        "took rung 2, fail_readiness",
        "recovery stuck: the trigger is over",
    ] {
        eventually(words, || {
            sidecar.events().iter().any(|event| event.contains(words))
        });
    }
    assert_eq!(
        sidecar.metric(
            r#"outrigger_recovery_actions_total{recovery="stuck",action="webhook",result="done"}"#
        ),
        1.0
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/recovery")[0]["last_events"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn shadow_recovery_only_reports_and_a_failed_webhook_is_reported() {
    let backend = ScriptedBackend::responding_with(|_| response(500, "broken"));
    let nowhere = format!("http://{}/", ScriptedBackend::unused_address());
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &recovery_sections(&nowhere, "      mode: Shadow\n"),
    ));
    sidecar.get("/");
    eventually("both rungs are told", || {
        sidecar
            .events()
            .iter()
            .filter(|event| event.contains("would take rung"))
            .count()
            == 2
    });
    assert_eq!(sidecar.call_admin("GET", "/readyz").status, 200);

    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &recovery_sections(&nowhere, ""),
    ));
    sidecar.get("/");
    eventually("the failure is told", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("webhook: connect:"))
    });
    assert_eq!(
        sidecar.metric(
            r#"outrigger_recovery_actions_total{recovery="stuck",action="webhook",result="failed"}"#
        ),
        1.0
    );
}

//! Recovery actions for a breaker that stays open.

use std::sync::atomic::Ordering;

use crate::support::{ScriptedBackend, Sidecar, backend::response, eventually, policy::policy};

/// Returns a recovery whose two rungs call the webhook and fail readiness, with further fields.
fn recovery_sections(webhook: &str, fields: &str) -> String {
    format!(
        "  defaults: {{circuitBreaker: {{consecutiveFailures: 1, recoveryRamp: 0s, \
         waitDurationInOpenState: 20ms, maxWaitDurationInOpenState: 20ms, \
         permittedNumberOfCallsInHalfOpenState: 1}}}}\n  \
         recovery: [{{name: stuck, cooldown: 1s, \
         trigger: {{type: CircuitOpenFor, backend: app, duration: 50ms}}, \
         ladder: [{{action: {{type: Webhook, url: \"{webhook}\"}}}}, \
         {{action: {{type: FailReadiness}}, undo: OnRecovery}}]{fields}}}]\n"
    )
}

fn has_event(sidecar: &Sidecar, text: &str) -> bool {
    sidecar.events().iter().any(|event| event.contains(text))
}

#[test]
fn a_breaker_that_stays_open_calls_the_webhook_and_fails_readiness_until_it_closes() {
    let (backend, is_broken) = ScriptedBackend::switchable();
    let webhook = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &recovery_sections(&format!("http://{}/restart?a=b", webhook.address), ""),
    ));
    assert_eq!(sidecar.call_admin("GET", "/readyz").status, 200);
    sidecar.get("/");
    eventually("the webhook is called", || webhook.requests().len() == 1);
    let call = &webhook.requests()[0];
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
    let readiness = sidecar.call_admin("GET", "/readyz").text();
    assert!(
        readiness.contains("recovery-stuck") && readiness.contains("has not been closed for"),
        "{readiness}"
    );

    is_broken.store(false, Ordering::SeqCst);
    eventually("the instance is ready again", || {
        sidecar.get("/");
        sidecar.call_admin("GET", "/readyz").status == 200
    });
    for event_text in [
        "took rung 1, webhook",
        "took rung 2, fail_readiness",
        "recovery stuck: the trigger no longer holds",
    ] {
        eventually(event_text, || has_event(&sidecar, event_text));
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
    let unreachable = format!("http://{}/", ScriptedBackend::unused_address());
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &recovery_sections(&unreachable, ", mode: Shadow"),
    ));
    sidecar.get("/");
    eventually("both rungs are reported", || {
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
        &recovery_sections(&unreachable, ""),
    ));
    sidecar.get("/");
    eventually("the failed webhook is reported", || {
        has_event(&sidecar, "webhook: connect:")
    });
    assert_eq!(
        sidecar.metric(
            r#"outrigger_recovery_actions_total{recovery="stuck",action="webhook",result="failed"}"#
        ),
        1.0
    );
}

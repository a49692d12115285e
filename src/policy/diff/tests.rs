use std::collections::HashMap;

use super::diff;
use crate::policy::{load_source, snapshot::PolicySnapshot, source::PolicySource};

const HEAD: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\n\
                    metadata: {name: test}\nspec:\n";

const BACKENDS: &str = "  backends: [{name: app, endpoints: [\"10.0.0.1:80\"]}, \
                        {name: spare, endpoints: [\"10.0.0.2:80\"]}]\n";

/// Compiles a policy set with fields of the listener, fields of the route and further sections.
fn snapshot(listener: &str, route: &str, sections: &str) -> PolicySnapshot {
    let text = format!(
        "{HEAD}  listeners: [{{name: in, direction: Inbound, \
         address: \"127.0.0.1:80\"{listener}}}]\n{BACKENDS}  \
         routes: [{{name: all, listeners: [in], backendRefs: [{{name: app}}]{route}}}]\n{sections}"
    );
    let source = PolicySource::from_text("test.yaml", text);
    match load_source(&source, &HashMap::new()) {
        Ok(loaded) => loaded.snapshot,
        Err(diagnostics) => panic!("{}", diagnostics.to_human()),
    }
}

#[test]
fn each_difference_is_one_line_with_the_key_and_both_values() {
    let cases = [
        (
            ", limits: {maxConnections: 5}",
            "",
            "",
            "listener in: limits.maxConnections 10000 -> 5",
        ),
        (
            ", clientIPDetection: {xForwardedFor: {trustedCIDRs: [10.0.0.0/8]}}",
            "",
            "",
            "listener in: clientIPDetection.xForwardedFor.trustedCIDRs [] -> [10.0.0.0/8]",
        ),
        (
            "",
            ", matches: [{method: GET}]",
            "",
            "route all: matches changed",
        ),
        (
            "",
            ", circuitBreaker: {mode: Shadow}",
            "",
            "route all: circuitBreaker of backend app: none -> app@route:all: Shadow, scope \
             Backend, opens at 50 % failed calls, 100 % slow calls, rates over 10s with at least \
             20 calls, open for 5s to 60s, half-open for 5 calls within 30s, recovery ramp 10s, \
             slow above 4s, failure codes [5xx]   (from route:all); it starts closed",
        ),
        (
            "",
            ", rateLimit: {local: {rules: [{name: r, limit: {requests: 5, unit: Second}}]}}",
            "",
            "route all: rateLimit r added: 5 per 1s, burst 5, cost 1, Enforce; its buckets start \
             full",
        ),
        (
            "",
            "",
            "  lifecycle: {drain: {delay: 7s}}\n",
            "lifecycle: drain.delay 5s -> 7s",
        ),
        (
            "",
            "",
            "  telemetry: {accessLog: {samplingPercentage: 50}}\n",
            "telemetry.accessLog: samplingPercentage 100 -> 50",
        ),
    ];
    let plain = snapshot("", "", "");
    assert!(diff(&plain, &plain).is_empty());
    for (listener, route, sections, expected) in cases {
        let changed = snapshot(listener, route, sections);
        assert_eq!(diff(&plain, &changed), [expected]);
    }
}

#[test]
fn a_changed_policy_of_a_fallback_backend_is_a_difference() {
    let fallback = ", fallback: {backendRef: {name: spare}}, timeouts: {request: 9s}";
    let with_defaults = |request: &str| {
        let defaults = format!("  defaults: {{timeouts: {{request: {request}}}}}\n");
        snapshot("", fallback, &defaults)
    };
    assert_eq!(
        diff(&with_defaults("5s"), &with_defaults("6s")),
        ["route all: timeouts of backend spare: request 5s -> request 6s"]
    );
}

#[test]
fn a_fallback_body_that_is_not_shown_is_still_a_difference() {
    let with_body = |body: &str| {
        let fallback = format!(", fallback: {{response: {{body: {body}}}}}");
        snapshot("", &fallback, "")
    };
    let lines = diff(&with_body("one"), &with_body("two"));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("route all: fallback of backend app: changed: "));
}

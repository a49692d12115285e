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
    compile(&text)
}

fn compile(text: &str) -> PolicySnapshot {
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
            "route all: circuitBreaker of backend app: added: mode Shadow, scope Backend, \
             consecutiveFailures 0, failureRateThreshold 50, slowCallRateThreshold 100, \
             slowCallDurationThreshold 4s, minimumNumberOfCalls 20, samplingWindow 10s, \
             failureCodes [5xx], waitDurationInOpenState 5s, maxWaitDurationInOpenState 1m, \
             permittedNumberOfCallsInHalfOpenState 5, maxWaitDurationInHalfOpenState 30s, \
             recoveryRamp 10s, state app@route:all   (from route:all)",
        ),
        (
            "",
            ", rateLimit: {local: {rules: [{name: r, limit: {requests: 5, unit: Second}}]}}",
            "",
            "route all: rateLimit rule r added: 5 per 1s, burst 5, cost 1, Enforce",
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
        ["route all: timeouts of fallback or mirror backend spare: request 5s -> 6s"]
    );
}

#[test]
fn a_fallback_body_that_is_not_shown_is_still_a_difference() {
    let with_body = |body: &str| {
        let fallback = format!(", fallback: {{response: {{body: {body}}}}}");
        snapshot("", &fallback, "")
    };
    let lines = diff(&with_body("one"), &with_body("two"));
    assert_eq!(lines, ["route all: fallback of backend app: changed"]);
}

#[test]
fn a_difference_states_whether_the_state_is_retained() {
    let with_breaker = |fields: &str| {
        let defaults = format!("  defaults: {{circuitBreaker: {{{fields}}}}}\n");
        snapshot("", "", &defaults)
    };
    let plain = with_breaker("");
    let table = [
        (
            with_breaker("minimumNumberOfCalls: 7"),
            "minimumNumberOfCalls 20 -> 7; its state and counts are retained",
        ),
        (
            with_breaker("samplingWindow: 20s"),
            "samplingWindow 10s -> 20s; its state is retained, its counts are reset",
        ),
        (
            with_breaker("scope: Route"),
            "scope Backend -> Route, state app -> route:all; the state `route:all` applies",
        ),
    ];
    for (changed, expected) in table {
        let expected = format!("route all: circuitBreaker of backend app: {expected}");
        assert_eq!(diff(&plain, &changed), [expected]);
    }
    let moved = snapshot("", ", circuitBreaker: {}", "");
    assert_eq!(
        diff(&plain, &moved),
        [
            "route all: circuitBreaker of backend app: state app -> app@route:all, \
             origin defaults -> route:all; the state `app@route:all` applies"
        ]
    );
}

#[test]
fn values_that_contain_several_parts_are_compared_by_their_key() {
    let with_limits = |mode: &str| {
        let limits = format!(
            ", connectionLimits: {{maxPendingRequests: 1, adaptive: {{mode: {mode}}}}}, \
             retry: {{retryNonIdempotent: {0}, respectRetryAfter: {0}}}",
            mode == "Enforce"
        );
        snapshot("", &limits, "")
    };
    assert_eq!(
        diff(&with_limits("Enforce"), &with_limits("Shadow")),
        [
            "route all: retry of backend app: retryNonIdempotent true -> false, \
             respectRetryAfter true -> false",
            "route all: connectionLimits of backend app: adaptive.mode Enforce -> Shadow; \
             requests in flight still count, the adaptive limit is reset",
        ]
    );
}

#[test]
fn a_new_backend_before_a_named_one_changes_nothing_else() {
    let with_backends = |before: &str| {
        let text = format!(
            "{HEAD}  listeners: [{{name: in, direction: Inbound, address: \"127.0.0.1:80\"}}]\n  \
             backends: [{before}{{name: app, endpoints: [\"10.0.0.1:80\"]}}]\n  \
             routes: [{{name: all, listeners: [in], backendRefs: [{{name: app}}], \
             rateLimit: {{global: {{rules: [{{name: r, \
             limit: {{requests: 5, unit: Second}}}}]}}}}}}]\n  \
             globalRateLimit: {{backend: {{type: Replicas, replicas: {{backend: app}}}}}}\n"
        );
        compile(&text)
    };
    let added = with_backends("{name: aaa, endpoints: [\"10.0.0.9:80\"]}, ");
    assert_eq!(diff(&with_backends(""), &added), ["backend aaa added"]);
}

//! The circuit breaker: states, scopes, modes and operator commands.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

const SHORT_OPEN_STATE: &str = "waitDurationInOpenState: 50ms";

/// Returns a breaker that opens after three failures, with these further fields.
fn breaker(fields: &str) -> String {
    format!(
        "circuitBreaker: {{consecutiveFailures: 3, permittedNumberOfCallsInHalfOpenState: 2, \
         recoveryRamp: 0s, {fields}}}"
    )
}

fn breaker_section(fields: &str) -> String {
    format!("  defaults: {{{}}}\n", breaker(fields))
}

#[test]
fn an_open_breaker_rejects_requests_with_retry_after() {
    let (backend, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &breaker_section("waitDurationInOpenState: 10s"),
    ));
    for _ in 0..3 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.status, rejection.reason()),
        (503, "breaker_open:app")
    );
    let retry_after: u64 = rejection.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (8..=12).contains(&retry_after),
        "10 s with a jitter of 20 %: {retry_after}"
    );
    assert!(
        rejection
            .header("proxy-status")
            .unwrap()
            .contains("error=destination_unavailable")
    );
    assert_eq!(
        backend.requests().len(),
        3,
        "a rejected request is not sent to the backend"
    );
    assert_eq!(sidecar.breaker("app")["state"], "open");
    assert_eq!(
        sidecar.metric(r#"outrigger_breaker_state{breaker="app",state="open"}"#),
        1.0
    );
}

#[test]
fn a_recovered_backend_closes_the_breaker_through_half_open() {
    let (backend, is_broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &breaker_section(SHORT_OPEN_STATE),
    ));
    eventually("the breaker opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("the breaker closes", || {
        sidecar.get("/");
        sidecar.breaker("app")["state"] == "closed"
    });
    assert_eq!(sidecar.get("/").text(), "fine");
    let events = sidecar.events();
    for change in [
        "closed -> open because too many calls in a row failed",
        "open -> half_open because the open time elapsed",
        "half_open -> closed because the probes passed",
    ] {
        assert!(
            events.iter().any(|event| event.contains(change)),
            "{change} in {events:?}"
        );
    }
}

#[test]
fn a_client_disconnect_in_half_open_returns_its_permit() {
    let is_stuck = Arc::new(AtomicBool::new(false));
    let shared_is_stuck = is_stuck.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        while connection.read_request().is_some() {
            if shared_is_stuck.load(Ordering::SeqCst) {
                return connection.wait_for_close();
            }
            connection.send(response(500, "broken"));
        }
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &breaker_section("waitDurationInOpenState: 50ms, maxWaitDurationInHalfOpenState: 1h"),
    ));
    for _ in 0..3 {
        sidecar.get("/");
    }
    assert_eq!(sidecar.breaker("app")["state"], "open");
    is_stuck.store(true, Ordering::SeqCst);
    // There are more probes than permits, and the client of each probe disconnects.
    for round in 0..10 {
        let sent_before = backend.requests().len();
        let mut client = sidecar.client();
        eventually("a probe reaches the backend", || {
            if backend.requests().len() > sent_before {
                return true;
            }
            if sidecar.in_flight() == 0 {
                client = sidecar.client();
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            }
            false
        });
        assert_eq!(
            sidecar.breaker("app")["state"],
            "half_open",
            "round {round}"
        );
        drop(client);
        eventually("nothing is in flight", || sidecar.in_flight() == 0);
    }
}

#[test]
fn slow_calls_trip_the_breaker_without_a_failure() {
    let backend = ScriptedBackend::start(|mut connection| {
        while connection.read_request().is_some() {
            crate::support::simulate_delay(std::time::Duration::from_millis(20));
            connection.send(ok_response("slow"));
        }
    });
    let slow_calls = "  defaults: {circuitBreaker: {slowCallDurationThreshold: 1ms, \
        slowCallRateThreshold: 80, minimumNumberOfCalls: 4, waitDurationInOpenState: 1m}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], slow_calls));
    for _ in 0..4 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("the slow call rate is too high"))
    );
}

#[test]
fn a_429_counts_for_the_failure_rate_and_not_for_consecutive_failures() {
    let backend = ScriptedBackend::responding_with(|_| response(429, "later"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 2, minimumNumberOfCalls: 6, \
         waitDurationInOpenState: 1m}}\n",
    ));
    for _ in 0..6 {
        assert_eq!(sidecar.get("/").status, 429);
    }
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("because the failure rate is too high"))
    );
}

#[test]
fn a_shadow_breaker_opens_and_counts_but_rejects_nothing() {
    let (backend, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &breaker_section("mode: Shadow, waitDurationInOpenState: 1m"),
    ));
    for _ in 0..10 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    assert_eq!(sidecar.breaker("app")["state"], "open");
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="breaker_open"}"#),
        7.0
    );
}

const ENDPOINT_SCOPE: &str = "scope: Endpoint, waitDurationInOpenState: 1m";

#[test]
fn an_endpoint_breaker_excludes_the_failing_endpoint_and_rejects_nothing() {
    let (failing, healthy) = (
        ScriptedBackend::responding_with(|_| response(500, "failing")),
        ScriptedBackend::healthy(),
    );
    let sidecar = Sidecar::start(&policy(
        &[failing.address, healthy.address],
        &breaker_section(ENDPOINT_SCOPE),
    ));
    let mut client = sidecar.client();
    eventually("the failing endpoint has failed three times", || {
        client.get("/");
        failing.requests().len() == 3
    });
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(failing.requests().len(), 3);
    assert_eq!(
        sidecar.breaker(&format!("app/{}", failing.address))["state"],
        "open"
    );
}

#[test]
fn requests_are_rejected_while_all_endpoint_breakers_are_open() {
    let (one, two) = (
        ScriptedBackend::responding_with(|_| response(500, "failing")),
        ScriptedBackend::responding_with(|_| response(500, "failing")),
    );
    let sidecar = Sidecar::start(&policy(
        &[one.address, two.address],
        &breaker_section(ENDPOINT_SCOPE),
    ));
    eventually("the breakers of all endpoints are open", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
}

#[test]
fn a_route_breaker_does_not_affect_other_routes() {
    let backend = ScriptedBackend::responding_with(|request| {
        if request.request_line().contains("/failing") {
            response(500, "failing")
        } else {
            ok_response("hello")
        }
    });
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .route(
                "failing",
                "listeners: [inbound], matches: [{path: {value: /failing}}], \
                 backendRefs: [{name: app}]",
            )
            .sections(&breaker_section(
                "scope: Route, waitDurationInOpenState: 1m",
            ))
            .build(),
    );
    for _ in 0..3 {
        sidecar.get("/failing");
    }
    assert_eq!(
        sidecar.get("/failing").reason(),
        "breaker_open:route:failing"
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn the_admin_api_forces_open_disables_and_resets_a_breaker() {
    let (backend, is_broken) = ScriptedBackend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &breaker_section(SHORT_OPEN_STATE),
    ));
    assert_eq!(
        sidecar
            .call_admin("POST", "/api/v1/breakers/app/force-open")
            .status,
        200
    );
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.reason(), rejection.header("retry-after")),
        ("breaker_open:app", Some("1"))
    );
    assert_eq!(
        sidecar
            .call_admin("POST", "/api/v1/breakers/app/auto")
            .status,
        200
    );
    assert_eq!(sidecar.get("/").status, 200);
    is_broken.store(true, Ordering::SeqCst);
    sidecar.call_admin("POST", "/api/v1/breakers/app/disable");
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").status, 500);
    }
    sidecar.call_admin("POST", "/api/v1/breakers/app/reset");
    assert_eq!(sidecar.breaker("app")["state"], "closed");
    assert_eq!(
        sidecar
            .call_admin("POST", "/api/v1/breakers/none/reset")
            .status,
        404
    );
    assert_eq!(
        sidecar
            .call_admin("POST", "/api/v1/breakers/app/explode")
            .status,
        404
    );
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("breaker app/force-open by 127.0.0.1")),
        "the change is recorded as an audit event"
    );
}

#[test]
fn connect_failures_and_timeouts_count_as_failures() {
    let sidecar = Sidecar::start(&policy(
        &[ScriptedBackend::unused_address()],
        &breaker_section(SHORT_OPEN_STATE),
    ));
    eventually("the breaker opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
    let silent = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let defaults = format!(
        "  defaults: {{timeouts: {{backendRequest: 20ms}}, {}}}\n",
        breaker(SHORT_OPEN_STATE)
    );
    let sidecar = Sidecar::start(&policy(&[silent.address], &defaults));
    eventually("the breaker opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
}

/// The duration of a call starts when the client has sent the whole request.
#[test]
fn a_slow_upload_is_not_a_slow_call() {
    let backend = ScriptedBackend::healthy();
    let slow_calls = "  defaults: {circuitBreaker: {slowCallDurationThreshold: 150ms, \
        slowCallRateThreshold: 50, minimumNumberOfCalls: 1, waitDurationInOpenState: 1m}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], slow_calls));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    for _ in 0..4 {
        crate::support::simulate_delay(std::time::Duration::from_millis(60));
        client.send("x");
    }
    assert_eq!(client.read_response().status, 200);
    assert_eq!(sidecar.breaker("app")["slow"], 0);
}

//! The circuit breaker on the wire.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::policy,
};

const BREAKER: &str = "  defaults: {circuitBreaker: {consecutiveFailures: 3, waitDurationInOpenState: 50ms, permittedNumberOfCallsInHalfOpenState: 2, recoveryRamp: 0s}}\n";

#[test]
fn a_breaker_opens_refuses_probes_and_closes() {
    let (backend, _broken) = Backend::switchable();
    let sidecar = Sidecar::start(&policy(&[backend.address], &BREAKER.replace("50ms", "10s")));
    for _ in 0..3 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    let refusal = sidecar.get("/");
    assert_eq!(
        (refusal.status, refusal.reason()),
        (503, "breaker_open:app")
    );
    let wait: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (8..=12).contains(&wait),
        "ten seconds, jittered by a fifth: {wait}"
    );
    assert!(
        refusal
            .header("proxy-status")
            .unwrap()
            .contains("error=destination_unavailable")
    );
    assert_eq!(backend.seen().len(), 3, "a refusal does not reach the app");
    assert_eq!(sidecar.breaker("app")["state"], "open");
    assert_eq!(
        sidecar.metric(r#"outrigger_breaker_state{breaker="app",state="open"}"#),
        1.0
    );
}

#[test]
fn a_healed_app_is_found_out_by_itself() {
    let (backend, is_broken) = Backend::switchable();
    let sidecar = Sidecar::start(&policy(&[backend.address], BREAKER));
    eventually("it opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("it closes", || {
        sidecar.get("/");
        sidecar.breaker("app")["state"] == "closed"
    });
    assert_eq!(sidecar.get("/").text(), "fine");
    let told = sidecar.events();
    for change in [
        "closed -> open by ConsecutiveFailures",
        "open -> half_open by OpenTimeElapsed",
        "half_open -> closed by ProbesPassed",
    ] {
        assert!(
            told.iter().any(|event| event.contains(change)),
            "{change} in {told:?}"
        );
    }
}

#[test]
fn a_client_that_leaves_in_half_open_gives_its_permit_back() {
    let is_stuck = Arc::new(AtomicBool::new(false));
    let there = is_stuck.clone();
    let backend = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            if there.load(Ordering::SeqCst) {
                return connection.wait_for_close();
            }
            connection.send(answer(500, "broken"));
        }
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &BREAKER.replace(
            "waitDurationInOpenState: 50ms",
            "waitDurationInOpenState: 50ms, maxWaitDurationInHalfOpenState: 1h",
        ),
    ));
    for _ in 0..3 {
        sidecar.get("/");
    }
    assert_eq!(sidecar.breaker("app")["state"], "open");
    is_stuck.store(true, Ordering::SeqCst);
    // Far more probes than there are permits, and each leaves.
    for round in 0..10 {
        let before = backend.seen().len();
        let mut client = sidecar.client();
        eventually("a probe reaches the app", || {
            if backend.seen().len() > before {
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
fn a_slow_app_trips_it_without_a_single_failure() {
    let backend = Backend::start(|mut connection| {
        while connection.request().is_some() {
            crate::support::take(std::time::Duration::from_millis(20));
            connection.send(ok("late"));
        }
    });
    let slow = "  defaults: {circuitBreaker: {slowCallDurationThreshold: 1ms, slowCallRateThreshold: 80, minimumNumberOfCalls: 4, waitDurationInOpenState: 1m}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], slow));
    for _ in 0..4 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("SlowCallRate"))
    );
}

#[test]
fn a_429_counts_for_the_rate_and_not_for_the_run() {
    let backend = Backend::answering(|_| answer(429, "later"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {consecutiveFailures: 2, minimumNumberOfCalls: 6, waitDurationInOpenState: 1m}}\n",
    ));
    for _ in 0..6 {
        assert_eq!(sidecar.get("/").status, 429);
    }
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("by FailureRate"))
    );
}

#[test]
fn in_shadow_mode_it_opens_counts_and_refuses_nobody() {
    let (backend, _broken) = Backend::switchable();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &BREAKER
            .replace("{consecutive", "{mode: Shadow, consecutive")
            .replace("50ms", "1m"),
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

#[test]
fn with_the_scope_endpoint_the_bad_one_is_left_out_and_nobody_is_refused() {
    let (bad, good) = (
        Backend::answering(|_| answer(500, "bad")),
        Backend::healthy(),
    );
    let scope = BREAKER
        .replace("{consecutive", "{scope: Endpoint, consecutive")
        .replace("50ms", "1m");
    let sidecar = Sidecar::start(&policy(&[bad.address, good.address], &scope));
    let mut client = sidecar.client();
    eventually("the bad one has failed three times", || {
        client.get("/");
        bad.seen().len() == 3
    });
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(bad.seen().len(), 3);
    assert_eq!(
        sidecar.breaker(&format!("app/{}", bad.address))["state"],
        "open"
    );

    drop(good);
    let (bad, other) = (
        Backend::answering(|_| answer(500, "bad")),
        Backend::answering(|_| answer(500, "bad")),
    );
    let sidecar = Sidecar::start(&policy(&[bad.address, other.address], &scope));
    eventually("all are open", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
}

#[test]
fn with_the_scope_route_one_route_does_not_stop_another() {
    let backend = Backend::answering(|request| {
        if request.line().contains("/bad") {
            answer(500, "bad")
        } else {
            ok("good")
        }
    });
    let routes = "    - {name: bad, listeners: [inbound], matches: [{path: {value: /bad}}], backendRefs: [{name: app}]}\n";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &format!(
            "{routes}{}",
            BREAKER
                .replace("{consecutive", "{scope: Route, consecutive")
                .replace("50ms", "1m")
        ),
    ));
    for _ in 0..3 {
        sidecar.get("/bad");
    }
    assert_eq!(sidecar.get("/bad").reason(), "breaker_open:route:bad");
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn by_hand_a_breaker_is_forced_open_disabled_and_reset() {
    let (backend, is_broken) = Backend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let sidecar = Sidecar::start(&policy(&[backend.address], BREAKER));
    assert_eq!(
        sidecar
            .admin("POST", "/api/v1/breakers/app/force-open")
            .status,
        200
    );
    let refusal = sidecar.get("/");
    assert_eq!(
        (refusal.reason(), refusal.header("retry-after")),
        ("breaker_open:app", Some("1"))
    );
    assert_eq!(
        sidecar.admin("POST", "/api/v1/breakers/app/auto").status,
        200
    );
    assert_eq!(sidecar.get("/").status, 200);
    is_broken.store(true, Ordering::SeqCst);
    sidecar.admin("POST", "/api/v1/breakers/app/disable");
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").status, 500);
    }
    sidecar.admin("POST", "/api/v1/breakers/app/reset");
    assert_eq!(sidecar.breaker("app")["state"], "closed");
    assert_eq!(
        sidecar.admin("POST", "/api/v1/breakers/none/reset").status,
        404
    );
    assert_eq!(
        sidecar.admin("POST", "/api/v1/breakers/app/explode").status,
        404
    );
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("breaker app/force-open by 127.0.0.1")),
        "an audit event"
    );
}

#[test]
fn no_connection_and_no_answer_are_failures_too() {
    let sidecar = Sidecar::start(&policy(&[Backend::nowhere()], BREAKER));
    eventually("it opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
    let silent = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(
        &[silent.address],
        &BREAKER.replace("{circuit", "{timeouts: {backendRequest: 20ms}, circuit"),
    ));
    eventually("it opens", || {
        sidecar.get("/").reason() == "breaker_open:app"
    });
}

/// How long a client takes to send its request is not the app's slowness.
#[test]
fn a_slow_upload_is_not_a_slow_call() {
    let backend = Backend::healthy();
    let slow = "  defaults: {circuitBreaker: {slowCallDurationThreshold: 150ms, slowCallRateThreshold: 50, minimumNumberOfCalls: 1, waitDurationInOpenState: 1m}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], slow));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    for _ in 0..4 {
        crate::support::take(std::time::Duration::from_millis(60));
        client.send("x");
    }
    assert_eq!(client.answer().status, 200);
    assert_eq!(sidecar.breaker("app")["slow"], 0);
}

//! Outlier detection: failing and slow endpoints are ejected, and return after one probe.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    ScriptedBackend, Sidecar, backend::ok_response, eventually, policy::PolicyBuilder,
};

const SHORT_EJECTION: &str = "outlierDetection: {consecutive5xxErrors: 3, interval: 200ms, \
                              baseEjectionTime: 300ms, maxEjectionTime: 300ms}";

/// Returns a policy whose backend has these endpoints and fields.
fn policy_with_fields(backends: &[&ScriptedBackend], fields: &str) -> String {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    PolicyBuilder::new(&addresses)
        .backend_fields(fields)
        .build()
}

fn ejection_state(sidecar: &Sidecar, endpoint: usize) -> String {
    sidecar.admin_json("/api/v1/backends")[0]["endpoints"][endpoint]["outlier"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Whether an event contains this text.
fn has_event(sidecar: &Sidecar, text: &str) -> bool {
    sidecar.events().iter().any(|event| event.contains(text))
}

#[test]
fn a_failing_endpoint_receives_no_requests_while_it_is_ejected() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let healthy = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&failing, &healthy[0], &healthy[1]],
        "outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 10m, maxEjectionTime: 10m}",
    ));
    let mut client = sidecar.client();
    for _ in 0..30 {
        client.get("/");
    }
    let before = failing.requests().len();
    for _ in 0..1_000 {
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(failing.requests().len(), before);
}

#[test]
fn an_ejected_endpoint_returns_after_a_probe_without_a_burst() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let healthy = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&failing, &healthy[0], &healthy[1]],
        SHORT_EJECTION,
    ));
    let mut client = sidecar.client();
    eventually("the endpoint is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0).starts_with("ejected")
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("the endpoint returns", || {
        client.get("/");
        ejection_state(&sidecar, 0) == "in"
    });
    let before = failing.requests().len();
    for _ in 0..300 {
        client.get("/");
    }
    let share = failing.requests().len() - before;
    assert!(
        (60..=140).contains(&share),
        "the share of the endpoint is a third of 300: {share}"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("is ejected for") && event.contains("3 failures in a row")),
        "{events:?}"
    );
    assert!(has_event(&sidecar, "passed its probe"), "{events:?}");
    assert!(
        sidecar
            .metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="consecutive_5xx"}"#)
            >= 1.0
    );
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy_with_fields(&[&failing], SHORT_EJECTION));
    for _ in 0..20 {
        assert_eq!(
            sidecar.get("/").text(),
            "broken",
            "the response of the app is forwarded"
        );
    }
    let (other, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy_with_fields(&[&failing, &other], SHORT_EJECTION));
    for _ in 0..60 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    let ejected = (0..2)
        .filter(|endpoint| ejection_state(&sidecar, *endpoint) != "in")
        .count();
    assert!(ejected <= 1, "at most one of two endpoints is ejected");
}

#[test]
fn an_unreachable_endpoint_is_ejected_without_a_failed_request() {
    let healthy = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let policy = PolicyBuilder::new(&[
        ScriptedBackend::unused_address(),
        healthy[0].address,
        healthy[1].address,
    ])
    .backend_fields(
        "outlierDetection: {consecutiveLocalOriginFailures: 2, \
         baseEjectionTime: 10m, maxEjectionTime: 10m}",
    );
    let sidecar = Sidecar::start(&policy.build());
    let mut client = sidecar.client();
    for _ in 0..60 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(ejection_state(&sidecar, 0).starts_with("ejected"));
    assert_eq!(
        sidecar.metric(r#"outrigger_backend_endpoints_available{backend="app"}"#),
        2.0
    );
}

#[test]
fn an_endpoint_that_is_much_slower_than_its_peers_is_ejected() {
    let is_slow = Arc::new(AtomicBool::new(true));
    let shared_is_slow = is_slow.clone();
    let slow = ScriptedBackend::responding_with(move |_| {
        if shared_is_slow.load(Ordering::SeqCst) {
            crate::support::simulate_delay(Duration::from_millis(120));
        }
        ok_response("hello")
    });
    let healthy = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&slow, &healthy[0], &healthy[1]],
        "outlierDetection: {interval: 500ms, baseEjectionTime: 1s, maxEjectionTime: 1s}",
    ));
    let is_stopped = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, is_stopped) = (sidecar.client(), is_stopped.clone());
            thread::spawn(move || {
                while !is_stopped.load(Ordering::SeqCst) {
                    assert_eq!(client.get("/").status, 200);
                }
            })
        })
        .collect();
    eventually("the slow endpoint is ejected", || {
        has_event(&sidecar, "far above")
    });
    eventually("a slow probe fails", || {
        has_event(&sidecar, "its probe took")
    });
    assert!(!has_event(&sidecar, "passed its probe"));
    is_slow.store(false, Ordering::SeqCst);
    eventually("the endpoint returns", || {
        ejection_state(&sidecar, 0) == "in"
    });
    is_stopped.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|client| client.join().unwrap());
    assert!(
        sidecar.metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="slow"}"#) >= 1.0
    );
}

#[test]
fn shadow_mode_reports_ejections_and_continues_to_send_requests() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let healthy = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let policy_with_mode = |mode: &str, failures: u32| {
        policy_with_fields(
            &[&failing, &healthy[0], &healthy[1]],
            &format!(
                "loadBalancer: {{type: RoundRobin}}, \
                 outlierDetection: {{mode: {mode}, consecutive5xxErrors: {failures}}}"
            ),
        )
    };
    let sidecar = Sidecar::start(&policy_with_mode("Shadow", 3));
    let mut client = sidecar.client();
    for _ in 0..60 {
        client.get("/");
    }
    assert_eq!(failing.requests().len(), 20, "a third of the requests");
    assert!(has_event(&sidecar, "would be ejected"));
    assert_eq!(
        ejection_state(&sidecar, 0).split(' ').next(),
        Some("ejected")
    );
    // The ejection in shadow mode is not applied in enforce mode.
    let reloaded = sidecar.reload(&policy_with_mode("Enforce", 30));
    assert_eq!(reloaded.status, 200);
    assert_eq!(ejection_state(&sidecar, 0), "in");
}

#[test]
fn shadow_mode_does_not_slow_start_a_returning_endpoint() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let healthy = ScriptedBackend::healthy();
    let shadow = "loadBalancer: {type: RoundRobin, slowStart: {window: 10m}}, \
                  outlierDetection: {mode: Shadow, consecutive5xxErrors: 3, \
                  baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(&policy_with_fields(&[&failing, &healthy], shadow));
    let mut client = sidecar.client();
    for _ in 0..10 {
        client.get("/");
    }
    is_broken.store(false, Ordering::SeqCst);
    eventually("the endpoint would return", || {
        client.get("/");
        has_event(&sidecar, "would be readmitted")
    });
    let before = failing.requests().len();
    for _ in 0..20 {
        client.get("/");
    }
    assert_eq!(
        failing.requests().len() - before,
        10,
        "half of the requests"
    );
}

#[test]
fn an_ejection_ends_when_outlier_detection_is_removed() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let healthy = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&failing, &healthy],
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}",
    ));
    let mut client = sidecar.client();
    eventually("the endpoint is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0).starts_with("ejected")
    });
    let reloaded = sidecar.reload(&policy_with_fields(
        &[&failing, &healthy],
        "loadBalancer: {type: Random}",
    ));
    assert_eq!(reloaded.status, 200);
    assert_eq!(ejection_state(&sidecar, 0), "in");
    assert_eq!(
        sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#),
        0.0
    );
}

#[test]
fn a_non_idempotent_request_is_not_the_probe_in_the_first_second() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let healthy = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&failing, &healthy],
        "outlierDetection: {consecutive5xxErrors: 2, \
         baseEjectionTime: 50ms, maxEjectionTime: 50ms}",
    ));
    let mut client = sidecar.client();
    eventually("the endpoint is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0) != "in"
    });
    eventually("the endpoint is on probation", || {
        ejection_state(&sidecar, 0) == "probation"
    });
    let before = failing.requests().len();
    assert_eq!(
        client.post("/pay", "1").text(),
        "hello",
        "a non-idempotent request is sent to the other endpoint"
    );
    assert_eq!(failing.requests().len(), before);
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(
        client.get("/").text(),
        "fine",
        "an idempotent request is the probe"
    );
    assert_eq!(ejection_state(&sidecar, 0), "in");
}

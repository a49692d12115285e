//! Endpoints that answer badly or slowly are left out, and come back through one probe.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    eventually,
    policy::{policy_with_backend_fields, quoted_addresses},
};

const SHORT_EJECTION: &str = "outlierDetection: {consecutive5xxErrors: 3, interval: 200ms, baseEjectionTime: 300ms, maxEjectionTime: 300ms}";

fn ejection_state(sidecar: &Sidecar, endpoint: usize) -> String {
    sidecar.admin_json("/api/v1/backends")[0]["endpoints"][endpoint]["outlier"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_failing_endpoint_is_ejected_and_returns_without_a_burst() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let good = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let endpoints = quoted_addresses(&[&failing, &good[0], &good[1]]);
    let long =
        "outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(&endpoints, long, ""));
    let mut client = sidecar.client();
    for _ in 0..30 {
        client.get("/");
    }
    let before = failing.requests().len();
    for _ in 0..1_000 {
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(failing.requests().len(), before);
    let sidecar = Sidecar::start(&policy_with_backend_fields(&endpoints, SHORT_EJECTION, ""));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0).starts_with("ejected")
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("it is asked again", || {
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
        "{share} of 300 is about a third"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("is ejected for") && event.contains("3 failures in a row")),
        "{events:?}"
    );
    assert!(
        events
            .iter()
            .any(|event| event.contains("passed its probe")),
        "{events:?}"
    );
    assert!(
        sidecar
            .metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="consecutive_5xx"}"#)
            >= 1.0
    );
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&failing]),
        SHORT_EJECTION,
        "",
    ));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "broken", "the app's own answer");
    }
    let (other, _broken) = ScriptedBackend::switchable();
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&failing, &other]),
        SHORT_EJECTION,
        "",
    ));
    for _ in 0..60 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    let out = (0..2)
        .filter(|endpoint| ejection_state(&sidecar, *endpoint) != "in")
        .count();
    assert!(out <= 1, "one of two at most");
}

#[test]
fn an_unreachable_endpoint_is_ejected_without_a_failed_request() {
    let good = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let endpoints = [
        vec![format!("\"{}\"", ScriptedBackend::unused_address())],
        quoted_addresses(&[&good[0], &good[1]]),
    ]
    .concat();
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &endpoints,
        "outlierDetection: {consecutiveLocalOriginFailures: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}",
        "",
    ));
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
    let good = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let extra = "outlierDetection: {interval: 500ms, baseEjectionTime: 1s, maxEjectionTime: 1s}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&slow, &good[0], &good[1]]),
        extra,
        "",
    ));
    let is_stopped = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, is_stopped, served) =
                (sidecar.client(), is_stopped.clone(), served.clone());
            thread::spawn(move || {
                while !is_stopped.load(Ordering::SeqCst) {
                    assert_eq!(client.get("/").status, 200);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    eventually("it is ejected for being slow", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("far above"))
    });
    eventually("it is not let in while it is", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("its probe took"))
    });
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("passed its probe"))
    );
    is_slow.store(false, Ordering::SeqCst);
    eventually("it is asked again", || ejection_state(&sidecar, 0) == "in");
    is_stopped.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|client| client.join().unwrap());
    assert!(
        sidecar.metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="slow"}"#) >= 1.0
    );
}

#[test]
fn shadow_mode_reports_ejections_and_still_sends_requests() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let good = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let shadow = "loadBalancer: {type: RoundRobin}, outlierDetection: {mode: Shadow, consecutive5xxErrors: 3}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&failing, &good[0], &good[1]]),
        shadow,
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..60 {
        client.get("/");
    }
    assert_eq!(failing.requests().len(), 20, "every third");
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("would be ejected"))
    );
    // What was only watched is not held against it when it is acted on.
    let enforced = shadow
        .replace("Shadow", "Enforce")
        .replace("5xxErrors: 3", "5xxErrors: 30");
    assert_eq!(
        ejection_state(&sidecar, 0).split(' ').next(),
        Some("ejected")
    );
    assert_eq!(
        sidecar
            .reload(&policy_with_backend_fields(
                &quoted_addresses(&[&failing, &good[0], &good[1]]),
                &enforced,
                ""
            ))
            .status,
        200
    );
    assert_eq!(ejection_state(&sidecar, 0), "in");
}

#[test]
fn shadow_mode_does_not_slow_start_a_returning_endpoint() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let good = ScriptedBackend::healthy();
    let shadow = "loadBalancer: {type: RoundRobin, slowStart: {window: 10m}}, outlierDetection: {mode: Shadow, consecutive5xxErrors: 3, baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&failing, &good]),
        shadow,
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..10 {
        client.get("/");
    }
    is_broken.store(false, Ordering::SeqCst);
    eventually("it would be back", || {
        client.get("/");
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("would be readmitted"))
    });
    let before = failing.requests().len();
    for _ in 0..20 {
        client.get("/");
    }
    assert_eq!(failing.requests().len() - before, 10, "every second");
}

#[test]
fn an_ejection_ends_when_outlier_detection_is_removed() {
    let (failing, _broken) = ScriptedBackend::switchable();
    let good = ScriptedBackend::healthy();
    let endpoints = quoted_addresses(&[&failing, &good]);
    let long =
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(&endpoints, long, ""));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0).starts_with("ejected")
    });
    assert_eq!(
        sidecar
            .reload(&policy_with_backend_fields(
                &endpoints,
                "loadBalancer: {type: Random}",
                ""
            ))
            .status,
        200
    );
    assert_eq!(ejection_state(&sidecar, 0), "in");
    assert_eq!(
        sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#),
        0.0
    );
}

#[test]
fn a_non_idempotent_request_is_not_the_probe_in_the_first_second() {
    let (failing, is_broken) = ScriptedBackend::switchable();
    let good = ScriptedBackend::responding_with(|_| ok_response("hello"));
    let extra = "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 50ms, maxEjectionTime: 50ms}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&failing, &good]),
        extra,
        "",
    ));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        ejection_state(&sidecar, 0) != "in"
    });
    eventually("it is on probation", || {
        ejection_state(&sidecar, 0) == "probation"
    });
    let before = failing.requests().len();
    assert_eq!(
        client.post("/pay", "1").text(),
        "hello",
        "not within the first second"
    );
    assert_eq!(failing.requests().len(), before);
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(client.get("/").text(), "fine", "this one is the probe");
    assert_eq!(ejection_state(&sidecar, 0), "in");
}

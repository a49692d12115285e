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
    Backend, Sidecar,
    backend::ok,
    eventually,
    sidecar::{addresses, policy_with},
};

const QUICK: &str = "outlierDetection: {consecutive5xxErrors: 3, interval: 200ms, baseEjectionTime: 300ms, maxEjectionTime: 300ms}";

fn standing(sidecar: &Sidecar, endpoint: usize) -> String {
    sidecar.json("/api/v1/backends")[0]["endpoints"][endpoint]["outlier"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn one_of_three_that_fails_gets_almost_nothing_and_comes_back_without_a_burst() {
    let (failing, is_broken) = Backend::switchable();
    let good = [Backend::healthy(), Backend::healthy()];
    let endpoints = addresses(&[&failing, &good[0], &good[1]]);
    let long =
        "outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with(&endpoints, long, ""));
    let mut client = sidecar.client();
    for _ in 0..30 {
        client.get("/");
    }
    let before = failing.seen().len();
    for _ in 0..1_000 {
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(failing.seen().len(), before);
    let sidecar = Sidecar::start(&policy_with(&endpoints, QUICK, ""));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        standing(&sidecar, 0).starts_with("ejected")
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("it is asked again", || {
        client.get("/");
        standing(&sidecar, 0) == "in"
    });
    let before = failing.seen().len();
    for _ in 0..300 {
        client.get("/");
    }
    let share = failing.seen().len() - before;
    assert!(
        (60..=140).contains(&share),
        "{share} of 300 is about a third"
    );
    let told = sidecar.events();
    assert!(
        told.iter()
            .any(|event| event.contains("is ejected for") && event.contains("3 failures in a row")),
        "{told:?}"
    );
    assert!(
        told.iter().any(|event| event.contains("passed its probe")),
        "{told:?}"
    );
    assert!(
        sidecar
            .metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="consecutive_5xx"}"#)
            >= 1.0
    );
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let (failing, _broken) = Backend::switchable();
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&failing]), QUICK, ""));
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").text(), "broken", "the app's own answer");
    }
    let (other, _broken) = Backend::switchable();
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&failing, &other]), QUICK, ""));
    for _ in 0..60 {
        assert_eq!(sidecar.get("/").text(), "broken");
    }
    let out = (0..2)
        .filter(|endpoint| standing(&sidecar, *endpoint) != "in")
        .count();
    assert!(out <= 1, "one of two at most");
}

#[test]
fn an_endpoint_that_cannot_be_connected_to_is_ejected_and_nobody_notices() {
    let good = [Backend::healthy(), Backend::healthy()];
    let endpoints = [
        vec![format!("\"{}\"", Backend::nowhere())],
        addresses(&[&good[0], &good[1]]),
    ]
    .concat();
    let sidecar = Sidecar::start(&policy_with(
        &endpoints,
        "outlierDetection: {consecutiveLocalOriginFailures: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}",
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..60 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(standing(&sidecar, 0).starts_with("ejected"));
    assert_eq!(
        sidecar.metric(r#"outrigger_backend_endpoints_available{backend="app"}"#),
        2.0
    );
}

#[test]
fn an_endpoint_that_is_much_slower_than_its_peers_is_ejected() {
    let is_slow = Arc::new(AtomicBool::new(true));
    let there = is_slow.clone();
    let slow = Backend::answering(move |_| {
        if there.load(Ordering::SeqCst) {
            crate::support::take(Duration::from_millis(120));
        }
        ok("hello")
    });
    let good = [Backend::healthy(), Backend::healthy()];
    let extra = "outlierDetection: {interval: 500ms, baseEjectionTime: 1s, maxEjectionTime: 1s}";
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&slow, &good[0], &good[1]]),
        extra,
        "",
    ));
    let is_over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, is_over, served) = (sidecar.client(), is_over.clone(), served.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
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
    eventually("it is asked again", || standing(&sidecar, 0) == "in");
    is_over.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|client| client.join().unwrap());
    assert!(
        sidecar.metric(r#"outrigger_endpoint_ejections_total{backend="app",cause="slow"}"#) >= 1.0
    );
}

#[test]
fn shadow_tells_and_asks_all_the_same() {
    let (failing, _broken) = Backend::switchable();
    let good = [Backend::healthy(), Backend::healthy()];
    let shadow = "loadBalancer: {type: RoundRobin}, outlierDetection: {mode: Shadow, consecutive5xxErrors: 3}";
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&failing, &good[0], &good[1]]),
        shadow,
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..60 {
        client.get("/");
    }
    assert_eq!(failing.seen().len(), 20, "every third");
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
    assert_eq!(standing(&sidecar, 0).split(' ').next(), Some("ejected"));
    assert_eq!(
        sidecar
            .reload(&policy_with(
                &addresses(&[&failing, &good[0], &good[1]]),
                &enforced,
                ""
            ))
            .status,
        200
    );
    assert_eq!(standing(&sidecar, 0), "in");
}

#[test]
fn shadow_takes_no_share_from_an_endpoint_that_comes_back() {
    let (failing, is_broken) = Backend::switchable();
    let good = Backend::healthy();
    let shadow = "loadBalancer: {type: RoundRobin, slowStart: {window: 10m}}, outlierDetection: {mode: Shadow, consecutive5xxErrors: 3, baseEjectionTime: 10ms, maxEjectionTime: 10ms}";
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&failing, &good]), shadow, ""));
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
            .any(|event| event.contains("would be asked again"))
    });
    let before = failing.seen().len();
    for _ in 0..20 {
        client.get("/");
    }
    assert_eq!(failing.seen().len() - before, 10, "every second");
}

#[test]
fn an_ejection_ends_with_the_section_that_made_it() {
    let (failing, _broken) = Backend::switchable();
    let good = Backend::healthy();
    let endpoints = addresses(&[&failing, &good]);
    let long =
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with(&endpoints, long, ""));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        standing(&sidecar, 0).starts_with("ejected")
    });
    assert_eq!(
        sidecar
            .reload(&policy_with(&endpoints, "loadBalancer: {type: Random}", ""))
            .status,
        200
    );
    assert_eq!(standing(&sidecar, 0), "in");
    assert_eq!(
        sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#),
        0.0
    );
}

#[test]
fn a_payment_is_not_the_probe_while_others_may_be() {
    let (failing, is_broken) = Backend::switchable();
    let good = Backend::answering(|_| ok("hello"));
    let extra = "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 50ms, maxEjectionTime: 50ms}";
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&failing, &good]), extra, ""));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        standing(&sidecar, 0) != "in"
    });
    eventually("it is on probation", || {
        standing(&sidecar, 0) == "probation"
    });
    let before = failing.seen().len();
    assert_eq!(
        client.post("/pay", "1").text(),
        "hello",
        "not within the first second"
    );
    assert_eq!(failing.seen().len(), before);
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(client.get("/").text(), "fine", "this one is the probe");
    assert_eq!(standing(&sidecar, 0), "in");
}

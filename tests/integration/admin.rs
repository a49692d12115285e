//! Probes, views and who may change what.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use outrigger::telemetry::metrics;

use crate::support::{
    Backend, Client, Directory, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    sidecar::policy,
};

const CHECK: &str = "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, unhealthyThreshold: 2, healthyThreshold: 2, http: {path: /healthz}}}";

fn checked(policy: &str) -> String {
    policy.replace("]}\n  routes", &format!("], {CHECK}}}\n  routes"))
}

/// An app whose health can be switched.
fn app() -> (Backend, Arc<AtomicBool>) {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let there = is_healthy.clone();
    let backend = Backend::answering(move |request| match request.line().contains("/healthz") {
        true if !there.load(Ordering::SeqCst) => answer(500, "ill"),
        _ => ok("hello"),
    });
    (backend, is_healthy)
}

#[test]
fn readiness_follows_the_apps_own_check() {
    let (backend, is_healthy) = app();
    let sidecar = Sidecar::start(&checked(&policy(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app}}\n",
    )));
    let unready = sidecar.admin("GET", "/readyz");
    assert_eq!(unready.status, 503);
    eventually("it says why", || {
        sidecar
            .admin("GET", "/readyz")
            .text()
            .contains("status 500")
    });
    assert_eq!(
        (
            sidecar.admin("GET", "/livez").status,
            sidecar.admin("GET", "/startupz").status
        ),
        (200, 200),
        "a sick app does not get the sidecar killed"
    );
    is_healthy.store(true, Ordering::SeqCst);
    eventually("it is ready", || {
        sidecar.admin("GET", "/readyz").status == 200
    });
    let verbose = sidecar.admin("GET", "/readyz?verbose").text();
    for condition in [
        "[+] app-check-passed",
        "[+] endpoints-looked-for",
        "[+] listeners-bound",
        "[+] not-draining",
        "[+] policy-in-force",
    ] {
        assert!(verbose.contains(condition), "{condition} in {verbose}");
    }
    is_healthy.store(false, Ordering::SeqCst);
    eventually("it is unready again", || {
        sidecar.admin("GET", "/readyz").status == 503
    });
}

#[test]
fn registration_is_delayed_and_needs_as_many_passes_as_are_asked() {
    let (backend, is_healthy) = app();
    is_healthy.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&checked(&policy(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app, successThreshold: 3, delay: 200ms}}\n",
    )));
    eventually("it waits for the delay", || {
        let answer = sidecar.admin("GET", "/readyz");
        assert_eq!(answer.status, 503, "not before the delay is over");
        answer.text().contains("waiting for the startup delay")
    });
    assert!(backend.seen().len() >= 3);
    eventually("it is ready", || {
        sidecar.admin("GET", "/readyz").status == 200
    });
}

#[test]
fn an_unhealthy_endpoint_gets_no_requests_and_comes_back() {
    let (ill, is_healthy) = app();
    let (good, good_health) = app();
    good_health.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&checked(&policy(&[ill.address, good.address], "")));
    let health = |address: &String| {
        let backends = sidecar.json("/api/v1/backends");
        let endpoints = backends[0]["endpoints"].as_array().unwrap().clone();
        endpoints
            .iter()
            .find(|endpoint| endpoint["address"] == *address)
            .unwrap()["health"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("one is known to be ill", || {
        health(&ill.address.to_string()) == "unhealthy"
    });
    let requests = |backend: &Backend| {
        backend
            .seen()
            .iter()
            .filter(|seen| seen.line().contains("GET / "))
            .count()
    };
    for _ in 0..30 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!((requests(&ill), requests(&good)), (0, 30));
    good_health.store(false, Ordering::SeqCst);
    eventually("nobody is left", || {
        sidecar.get("/").reason() == "no_healthy_endpoint:app"
    });
    is_healthy.store(true, Ordering::SeqCst);
    eventually("it is back", || sidecar.get("/").status == 200);
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("is Unhealthy: status 500"))
    );
}

#[test]
fn a_tcp_check_only_connects_and_says_what_fails() {
    let backend = Backend::healthy();
    let tcp = "healthCheck: {active: {type: TCP, interval: 20ms, unhealthyThreshold: 1}}";
    let text = policy(&[backend.address, Backend::nowhere()], "")
        .replace("]}\n  routes", &format!("], {tcp}}}\n  routes"));
    let sidecar = Sidecar::start(&text);
    let endpoints = || sidecar.json("/api/v1/backends")[0]["endpoints"].clone();
    eventually("both are known", || {
        endpoints()[0]["health"] == "healthy" && endpoints()[1]["health"] == "unhealthy"
    });
    assert!(
        endpoints()[1]["last_check"]
            .as_str()
            .unwrap()
            .contains("connect:")
    );
    assert_eq!(backend.seen().len(), 0);
}

#[test]
fn probes_answer_while_every_worker_is_busy() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        connection.request();
        there.pass();
        connection.send(ok("done"));
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut busy: Vec<Client> = (0..64)
        .map(|_| {
            let mut client = sidecar.client();
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            client
        })
        .collect();
    eventually("all are in flight", || sidecar.in_flight() == 64);
    for probe in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(
            (
                sidecar.admin("GET", probe).status,
                sidecar.admin("GET", probe).text().as_str()
            ),
            (200, "ok\n")
        );
    }
    (0..64).for_each(|_| gate.open());
    assert!(busy.iter_mut().all(|client| client.answer().status == 200));
}

#[test]
fn changing_endpoints_are_not_for_pages_and_not_for_others_without_the_token() {
    let backend = Backend::healthy();
    let directory = Directory::new();
    directory.write("policy.yaml", &policy(&[backend.address], ""));
    let sidecar = Sidecar::start_in(directory, |settings| {
        settings.admin_token = Some("correct horse battery".into())
    })
    .unwrap();
    let post = |headers: &str| {
        let mut client = Client::connect(sidecar.app().admin_address());
        client.send(format!("POST /api/v1/reload HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n")).answer().status
    };
    assert_eq!(post(""), 200);
    assert_eq!(post("origin: http://evil\r\n"), 403);
    assert_eq!(
        post("origin: http://evil\r\nauthorization: Bearer correct horse battery\r\n"),
        200
    );
    assert_eq!(
        post("origin: http://evil\r\nauthorization: Bearer correct horse batterz\r\n"),
        403
    );
}

#[test]
fn events_are_streamed_as_they_happen() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {}}\n",
    ));
    let mut client = Client::connect(sidecar.app().admin_address());
    client.send("GET /api/v1/events HTTP/1.1\r\nhost: a\r\n\r\n");
    let (status, head) = client.head().unwrap();
    assert!(
        status == 200 && head.contains("text/event-stream"),
        "{head}"
    );
    sidecar.admin("POST", "/api/v1/breakers/app/force-open");
    let mut text = String::new();
    eventually("the event arrives", || {
        text += &String::from_utf8_lossy(&client.raw(1));
        text.contains("breaker_changed") && text.contains("closed -> forced_open")
    });
    assert!(
        text.contains("policy_applied"),
        "what was before comes first"
    );
}

#[test]
fn every_metric_is_documented_and_every_metric_shown_is_known() {
    let page = include_str!("../../docs/metrics.md");
    for (name, _, help) in metrics::ALL {
        assert!(
            page.contains(&format!("`{name}`")) && page.contains(help),
            "{name} is not in docs/metrics.md as it is in the code"
        );
    }
    let backend = Backend::healthy();
    let all = "  defaults: {circuitBreaker: {}, connectionLimits: {}, rateLimit: {local: {rules: [{name: all, limit: {requests: 1, unit: Second}}]}}, retry: {}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], all));
    for _ in 0..3 {
        sidecar.get("/");
    }
    let text = sidecar.admin("GET", "/metrics").text();
    let shown = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in shown {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(
            metrics::ALL.iter().any(|(known, ..)| *known == base),
            "{line}"
        );
        for label in ["path=", "127.0.0.1"] {
            assert!(!line.contains(label), "an unbounded label: {line}");
        }
    }
    assert!(text.contains("# HELP outrigger_requests_total"));
}

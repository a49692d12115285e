//! Probes, views and who may change what.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use outrigger::telemetry::metric_names;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response, response},
    eventually,
    policy::policy,
};

const ACTIVE_CHECK: &str = "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, unhealthyThreshold: 2, healthyThreshold: 2, http: {path: /healthz}}}";

fn with_active_check(policy: &str) -> String {
    policy.replace("]}\n  routes", &format!("], {ACTIVE_CHECK}}}\n  routes"))
}

/// An app whose health can be switched.
fn app_with_health_switch() -> (ScriptedBackend, Arc<AtomicBool>) {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let shared_is_healthy = is_healthy.clone();
    let backend = ScriptedBackend::responding_with(move |request| {
        match request.request_line().contains("/healthz") {
            true if !shared_is_healthy.load(Ordering::SeqCst) => response(500, "ill"),
            _ => ok_response("hello"),
        }
    });
    (backend, is_healthy)
}

#[test]
fn readiness_follows_the_active_check_of_the_app() {
    let (backend, is_healthy) = app_with_health_switch();
    let sidecar = Sidecar::start(&with_active_check(&policy(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app}}\n",
    )));
    let unready = sidecar.call_admin("GET", "/readyz");
    assert_eq!(unready.status, 503);
    eventually("it says why", || {
        sidecar
            .call_admin("GET", "/readyz")
            .text()
            .contains("status 500")
    });
    assert_eq!(
        (
            sidecar.call_admin("GET", "/livez").status,
            sidecar.call_admin("GET", "/startupz").status
        ),
        (200, 200),
        "a sick app does not get the sidecar killed"
    );
    is_healthy.store(true, Ordering::SeqCst);
    eventually("it is ready", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
    let verbose = sidecar.call_admin("GET", "/readyz?verbose").text();
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
        sidecar.call_admin("GET", "/readyz").status == 503
    });
}

#[test]
fn readiness_waits_for_the_startup_delay_and_the_success_threshold() {
    let (backend, is_healthy) = app_with_health_switch();
    is_healthy.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&with_active_check(&policy(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app, successThreshold: 3, delay: 200ms}}\n",
    )));
    eventually("it waits for the delay", || {
        let response = sidecar.call_admin("GET", "/readyz");
        assert_eq!(response.status, 503, "not before the delay is over");
        response.text().contains("waiting for the startup delay")
    });
    assert!(backend.requests().len() >= 3);
    eventually("it is ready", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
}

#[test]
fn an_unhealthy_endpoint_receives_no_requests_until_it_is_healthy_again() {
    let (unhealthy, is_healthy) = app_with_health_switch();
    let (healthy, good_health) = app_with_health_switch();
    good_health.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&with_active_check(&policy(
        &[unhealthy.address, healthy.address],
        "",
    )));
    let health = |address: &String| {
        let backends = sidecar.admin_json("/api/v1/backends");
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
        health(&unhealthy.address.to_string()) == "unhealthy"
    });
    let requests = |backend: &ScriptedBackend| {
        backend
            .requests()
            .iter()
            .filter(|seen| seen.request_line().contains("GET / "))
            .count()
    };
    for _ in 0..30 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!((requests(&unhealthy), requests(&healthy)), (0, 30));
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
            .any(|event| event.contains("is unhealthy: status 500"))
    );
}

#[test]
fn a_tcp_check_only_connects_and_reports_the_failure() {
    let backend = ScriptedBackend::healthy();
    let tcp = "healthCheck: {active: {type: TCP, interval: 20ms, unhealthyThreshold: 1}}";
    let text = policy(&[backend.address, ScriptedBackend::unused_address()], "")
        .replace("]}\n  routes", &format!("], {tcp}}}\n  routes"));
    let sidecar = Sidecar::start(&text);
    let endpoints = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"].clone();
    eventually("both are known", || {
        endpoints()[0]["health"] == "healthy" && endpoints()[1]["health"] == "unhealthy"
    });
    assert!(
        endpoints()[1]["last_check"]
            .as_str()
            .unwrap()
            .contains("connect:")
    );
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn probes_respond_while_every_worker_is_busy() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.read_request();
        backend_gate.wait_for_release();
        connection.send(ok_response("done"));
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
                sidecar.call_admin("GET", probe).status,
                sidecar.call_admin("GET", probe).text().as_str()
            ),
            (200, "ok\n")
        );
    }
    (0..64).for_each(|_| gate.release_one());
    assert!(
        busy.iter_mut()
            .all(|client| client.read_response().status == 200)
    );
}

#[test]
fn cross_origin_admin_writes_require_the_admin_token() {
    let backend = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &policy(&[backend.address], ""));
    let sidecar = Sidecar::start_with_settings(directory, |settings| {
        settings.admin_token = Some("correct horse battery".into())
    })
    .unwrap();
    let post = |headers: &str| {
        let mut client = Client::connect(sidecar.app().admin_address());
        client.send(format!("POST /api/v1/reload HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n")).read_response().status
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
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {circuitBreaker: {}}\n",
    ));
    let mut client = Client::connect(sidecar.app().admin_address());
    client.send("GET /api/v1/events HTTP/1.1\r\nhost: a\r\n\r\n");
    let (status, head) = client.read_head().unwrap();
    assert!(
        status == 200 && head.contains("text/event-stream"),
        "{head}"
    );
    sidecar.call_admin("POST", "/api/v1/breakers/app/force-open");
    let mut text = String::new();
    eventually("the event arrives", || {
        text += &String::from_utf8_lossy(&client.read_raw(1));
        text.contains("breaker_changed") && text.contains("closed -> forced_open")
    });
    assert!(
        text.contains("policy_applied"),
        "what was before comes first"
    );
}

#[test]
fn every_metric_is_documented_and_every_exported_metric_is_declared() {
    let page = include_str!("../../docs/metrics.md");
    for (name, _, help) in metric_names::ALL {
        assert!(
            page.contains(&format!("`{name}`")) && page.contains(help),
            "{name} is not in docs/metrics.md as it is in the code"
        );
    }
    let backend = ScriptedBackend::healthy();
    let all = "  defaults: {circuitBreaker: {}, connectionLimits: {}, rateLimit: {local: {rules: [{name: all, limit: {requests: 1, unit: Second}}]}}, retry: {}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], all));
    for _ in 0..3 {
        sidecar.get("/");
    }
    let text = sidecar.call_admin("GET", "/metrics").text();
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
            metric_names::ALL.iter().any(|(known, ..)| *known == base),
            "{line}"
        );
        for label in ["path=", "127.0.0.1"] {
            assert!(!line.contains(label), "an unbounded label: {line}");
        }
    }
    assert!(text.contains("# HELP outrigger_requests_total"));
}

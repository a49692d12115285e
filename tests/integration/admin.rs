//! The admin API: probes, views, writes, events and metrics.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use outrigger::telemetry::metric_names;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

fn policy_with_active_check(endpoints: &[SocketAddr], sections: &str) -> String {
    PolicyBuilder::new(endpoints)
        .backend_fields(
            "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, \
             unhealthyThreshold: 2, healthyThreshold: 2, http: {path: /healthz}}}",
        )
        .sections(sections)
        .build()
}

/// Starts a backend whose active check fails until the switch is on.
fn backend_with_health_switch() -> (ScriptedBackend, Arc<AtomicBool>) {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let shared_is_healthy = is_healthy.clone();
    let backend = ScriptedBackend::responding_with(move |request| {
        match request.request_line().contains("/healthz") {
            true if !shared_is_healthy.load(Ordering::SeqCst) => response(500, "failing"),
            _ => ok_response("hello"),
        }
    });
    (backend, is_healthy)
}

#[test]
fn readiness_follows_the_active_check_of_the_backend() {
    let (backend, is_healthy) = backend_with_health_switch();
    let sidecar = Sidecar::start(&policy_with_active_check(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app}}\n",
    ));
    let unready = sidecar.call_admin("GET", "/readyz");
    assert_eq!(unready.status, 503);
    eventually("the probe reports the cause", || {
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
        "an unhealthy backend does not affect the liveness of the sidecar"
    );
    is_healthy.store(true, Ordering::SeqCst);
    eventually("the instance is ready", || {
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
    eventually("the instance is not ready again", || {
        sidecar.call_admin("GET", "/readyz").status == 503
    });
}

#[test]
fn readiness_waits_for_the_startup_delay_and_the_success_threshold() {
    let (backend, is_healthy) = backend_with_health_switch();
    is_healthy.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&policy_with_active_check(
        &[backend.address],
        "  lifecycle: {startup: {requireBackend: app, successThreshold: 3, delay: 200ms}}\n",
    ));
    eventually("only the startup delay is pending", || {
        let response = sidecar.call_admin("GET", "/readyz");
        assert_eq!(
            response.status, 503,
            "the instance is not ready during the delay"
        );
        response.text().contains("waiting for the startup delay")
    });
    assert!(backend.requests().len() >= 3);
    eventually("the instance is ready", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
}

#[test]
fn an_unhealthy_endpoint_receives_no_requests_until_it_is_healthy_again() {
    let (unhealthy, is_healthy) = backend_with_health_switch();
    let (healthy, other_is_healthy) = backend_with_health_switch();
    other_is_healthy.store(true, Ordering::SeqCst);
    let sidecar = Sidecar::start(&policy_with_active_check(
        &[unhealthy.address, healthy.address],
        "",
    ));
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
    eventually("one endpoint is unhealthy", || {
        health(&unhealthy.address.to_string()) == "unhealthy"
    });
    let requests = |backend: &ScriptedBackend| {
        backend
            .requests()
            .iter()
            .filter(|request| request.request_line().contains("GET / "))
            .count()
    };
    for _ in 0..30 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!((requests(&unhealthy), requests(&healthy)), (0, 30));
    other_is_healthy.store(false, Ordering::SeqCst);
    eventually("no endpoint is healthy", || {
        sidecar.get("/").reason() == "no_healthy_endpoint:app"
    });
    is_healthy.store(true, Ordering::SeqCst);
    eventually("one endpoint is healthy again", || {
        sidecar.get("/").status == 200
    });
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
    let sidecar = Sidecar::start(
        &PolicyBuilder::new(&[backend.address, ScriptedBackend::unused_address()])
            .backend_fields(
                "healthCheck: {active: {type: TCP, interval: 20ms, unhealthyThreshold: 1}}",
            )
            .build(),
    );
    let endpoints = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"].clone();
    eventually("both endpoints are checked", || {
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
    eventually("all requests are in flight", || sidecar.in_flight() == 64);
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
        client
            .send(format!(
                "POST /api/v1/reload HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\
                 connection: close\r\n{headers}\r\n"
            ))
            .read_response()
            .status
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
        "past events are sent first"
    );
}

#[test]
fn every_metric_is_documented_and_every_exported_metric_is_declared() {
    let page = include_str!("../../docs/metrics.md");
    for (name, _, help) in metric_names::ALL {
        assert!(
            page.contains(&format!("`{name}`")) && page.contains(help),
            "docs/metrics.md does not contain {name} with the help text of the code"
        );
    }
    let backend = ScriptedBackend::healthy();
    let defaults = "  defaults: {circuitBreaker: {}, connectionLimits: {}, retry: {}, rateLimit: \
        {local: {rules: [{name: all, limit: {requests: 1, unit: Second}}]}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], defaults));
    for _ in 0..3 {
        sidecar.get("/");
    }
    let text = sidecar.call_admin("GET", "/metrics").text();
    let series = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in series {
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
            assert!(!line.contains(label), "the label is unbounded: {line}");
        }
    }
    assert!(text.contains("# HELP outrigger_requests_total"));
}

//! Concurrency limits, connection limits and admission control.

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

fn limits_section(fields: &str) -> String {
    format!("  defaults: {{connectionLimits: {{{fields}}}}}\n")
}

#[test]
fn requests_over_the_limit_are_queued_and_the_rest_are_rejected() {
    let (backend, gate) = ScriptedBackend::gated_with("done");
    let limits =
        limits_section("maxParallelRequests: 2, maxPendingRequests: 1, pendingTimeout: 20s");
    let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
    let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
    let usage = || {
        let limit = &sidecar.admin_json("/api/v1/limits")["concurrency"][0];
        (
            limit["in_flight"].as_u64().unwrap(),
            limit["pending"].as_u64().unwrap(),
        )
    };
    for (client, expected) in clients.iter_mut().zip([(1, 0), (2, 0), (2, 1)]) {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("the request is in flight or pending", || {
            usage() == expected
        });
    }
    let rejection = sidecar.get("/");
    assert_eq!(
        (
            rejection.status,
            rejection.reason(),
            rejection.header("retry-after")
        ),
        (503, "concurrency_limit:app", Some("1"))
    );
    eventually("two requests have arrived", || {
        backend.requests().len() == 2
    });
    for _ in 0..3 {
        gate.release_one();
    }
    for mut client in clients {
        assert_eq!(client.read_response().text(), "done");
    }
    eventually("all permits are released", || usage() == (0, 0));
    assert_eq!(backend.requests().len(), 3);
}

#[test]
fn a_pending_request_is_rejected_after_the_pending_timeout() {
    let (backend, gate) = ScriptedBackend::gated_with("done");
    let limits =
        limits_section("maxParallelRequests: 1, maxPendingRequests: 5, pendingTimeout: 30ms");
    let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request has arrived", || backend.requests().len() == 1);
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.status, rejection.reason()),
        (503, "queue_timeout:app")
    );
    gate.release_one();
    assert_eq!(first.read_response().text(), "done");
    assert_eq!(
        sidecar.admin_json("/api/v1/limits")["concurrency"][0]["pending"],
        0
    );
}

#[test]
fn a_pending_request_of_a_disconnected_client_is_not_sent() {
    let (backend, gate) = ScriptedBackend::gated_with("done");
    let limits =
        limits_section("maxParallelRequests: 1, maxPendingRequests: 5, pendingTimeout: 1h");
    let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request has arrived", || backend.requests().len() == 1);
    let mut second = sidecar.client();
    second.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let pending = || {
        sidecar.admin_json("/api/v1/limits")["concurrency"][0]["pending"]
            .as_u64()
            .unwrap()
    };
    eventually("the second request is pending", || pending() == 1);
    drop(second);
    eventually("the queue is empty", || pending() == 0);
    gate.release_one();
    assert_eq!(first.read_response().text(), "done");
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn connections_to_a_backend_are_bounded() {
    let (backend, gate) = ScriptedBackend::gated_with("done");
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &limits_section("maxConnections: 1"),
    ));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request has arrived", || backend.requests().len() == 1);
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.status, rejection.reason()),
        (503, "connection_limit:app")
    );
    gate.release_one();
    assert_eq!(first.read_response().text(), "done");
}

#[test]
fn connections_per_endpoint_are_bounded_and_other_endpoints_take_over() {
    let (slow, gate) = ScriptedBackend::gated_with("slow");
    let fast = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::new(&[slow.address, fast.address])
            .backend_fields("loadBalancer: {type: RoundRobin}")
            .sections(&limits_section("maxConnectionsPerEndpoint: 1"))
            .build(),
    );
    let mut waiting = sidecar.client();
    let mut busy = 0;
    while busy == 0 {
        // Round robin sends one of the first two requests to the slow endpoint.
        waiting = sidecar.client();
        waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("the request has arrived", || {
            slow.requests().len() + fast.requests().len() > 0
        });
        busy = slow.requests().len();
    }
    // One connection carries one request at a time.
    let mut client = sidecar.client();
    eventually("the fast endpoint is free", || {
        client.get("/").text() == "hello"
    });
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "hello", "the slow endpoint is full");
    }
    assert_eq!(slow.connections(), 1);
    gate.release_one();
    assert_eq!(waiting.read_response().text(), "slow");
}

#[test]
fn a_request_is_rejected_at_once_when_the_only_available_endpoint_is_full() {
    let (slow, gate) = ScriptedBackend::gated_with("slow");
    let failing = ScriptedBackend::responding_with(|_| response(500, "failing"));
    let outlier_detection = "outlierDetection: {consecutive5xxErrors: 1, \
        baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(
        &PolicyBuilder::new(&[failing.address, slow.address])
            .backend_fields(outlier_detection)
            .sections(&limits_section("maxConnectionsPerEndpoint: 1"))
            .build(),
    );
    let mut waiting = Vec::new();
    eventually("one endpoint is ejected and the other is full", || {
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        waiting.push(client);
        slow.requests().len() == 1
            && sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#) == 1.0
    });
    assert_eq!(
        sidecar.get("/").reason(),
        format!("connection_limit:{}", slow.address)
    );
    waiting.iter().for_each(|_| gate.release_one());
}

#[test]
fn downstream_connections_are_bounded() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::to_backend(&backend)
            .listener_fields("limits: {maxConnections: 2}")
            .build(),
    );
    let mut open_clients = [sidecar.client(), sidecar.client()];
    assert!(
        open_clients
            .iter_mut()
            .all(|client| client.get("/").status == 200)
    );
    sidecar.client().wait_for_close();
    assert_eq!(
        sidecar.metric(r#"outrigger_connections_refused_total{listener="inbound"}"#),
        1.0
    );
    drop(open_clients);
    eventually("a new connection is accepted", || {
        let mut client = sidecar.client();
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            && client
                .try_read_response()
                .is_some_and(|response| response.status == 200)
    });
}

fn adaptive_limit(sidecar: &Sidecar) -> u64 {
    sidecar.admin_json("/api/v1/limits")["concurrency"][0]["adaptive"]["limit"]
        .as_u64()
        .unwrap()
}

#[test]
fn an_adaptive_limit_rejects_below_the_configured_limit_and_only_counts_in_shadow_mode() {
    for (mode, status) in [("Enforce", 503), ("Shadow", 200)] {
        let (backend, gate) = ScriptedBackend::gated_with("done");
        let limits = limits_section(&format!(
            "maxParallelRequests: 100, maxPendingRequests: 0, \
             adaptive: {{mode: {mode}, minLimit: 2}}"
        ));
        let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
        let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            eventually("the request has arrived or was rejected", || {
                backend.requests().len() == (number + 1).min(if status == 503 { 2 } else { 3 })
            });
        }
        // A rejected request gets its response before the backend responds to the other two.
        let mut last = clients.pop().unwrap();
        if status == 503 {
            assert_eq!(last.read_response().status, 503, "{mode}");
        }
        (0..3).for_each(|_| gate.release_one());
        for mut client in clients {
            assert_eq!(client.read_response().status, 200, "{mode}");
        }
        if status == 200 {
            assert_eq!(last.read_response().status, 200, "{mode}");
        }
        let shadow_rejections = sidecar
            .metric(r#"outrigger_shadow_refusals_total{route="in",reason="concurrency_limit"}"#);
        assert_eq!(shadow_rejections, if mode == "Shadow" { 1.0 } else { 0.0 });
        assert_eq!(
            sidecar.metric(r#"outrigger_limit_max_in_flight{limit="app"}"#),
            if mode == "Shadow" { 100.0 } else { 2.0 }
        );
    }
}

#[test]
fn an_adaptive_limit_rises_while_latency_is_stable_and_falls_when_the_backend_fails() {
    let backend = ScriptedBackend::responding_with(|request| {
        if request.request_line().contains("/busy") {
            response(503, "busy")
        } else {
            ok_response("fine")
        }
    });
    for algorithm in ["Gradient2", "Vegas", "AIMD"] {
        let limits = format!(
            "  defaults: {{retry: {{mode: Off}}, \
             connectionLimits: {{adaptive: {{algorithm: {algorithm}, minLimit: 1}}}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
        let mut client = sidecar.client();
        let initial_limit = adaptive_limit(&sidecar);
        if algorithm != "AIMD" {
            // One client saturates a limit of one.
            eventually("the limit has risen", || {
                client.get("/").status == 200 && adaptive_limit(&sidecar) > initial_limit
            });
        }
        let raised_limit = adaptive_limit(&sidecar);
        eventually("the limit has fallen", || {
            client.get("/busy").status == 503 && adaptive_limit(&sidecar) < raised_limit
        });
    }
}

#[test]
fn admission_control_rejects_a_share_for_a_failing_backend_and_none_for_a_healthy_one() {
    for mode in ["Enforce", "Shadow"] {
        let (backend, is_broken) = ScriptedBackend::switchable();
        let section = format!(
            "  defaults: {{retry: {{mode: Off}}, \
             admissionControl: {{mode: {mode}, samplingWindow: 1s, minRequestRate: 1}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[backend.address], &section));
        let mut client = sidecar.client();
        let mut is_rejected = || client.get("/").reason() == "admission_control:app";
        if mode == "Shadow" {
            assert_eq!((0..200).filter(|_| is_rejected()).count(), 0);
            assert!(
                sidecar.metric(
                    r#"outrigger_shadow_refusals_total{route="in",reason="admission_control"}"#
                ) >= 100.0
            );
            continue;
        }
        eventually("most requests are rejected", || {
            is_rejected()
                && sidecar.metric(r#"outrigger_admission_rejection_ratio{admission="app"}"#) == 0.8
        });
        let sent_before = backend.requests().len();
        let admitted = 500 - (0..500).filter(|_| is_rejected()).count();
        assert!(
            (50..=150).contains(&admitted),
            "about one of five is admitted: {admitted}"
        );
        assert_eq!(backend.requests().len() - sent_before, admitted);
        is_broken.store(false, std::sync::atomic::Ordering::SeqCst);
        eventually("no request is rejected", || {
            !is_rejected()
                && sidecar.metric(r#"outrigger_admission_rejection_ratio{admission="app"}"#) == 0.0
        });
    }
}

//! Concurrency limits on the wire.

use crate::support::{
    Backend, Client, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    sidecar::policy,
};

fn gated() -> (Backend, std::sync::Arc<Gate>) {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            there.pass();
            connection.send(ok("done"));
        }
    });
    (backend, gate)
}

#[test]
fn concurrency_is_bounded_a_queue_waits_and_the_rest_is_refused() {
    let (backend, gate) = gated();
    let limits = "  defaults: {connectionLimits: {maxParallelRequests: 2, maxPendingRequests: 1, pendingTimeout: 20s}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], limits));
    let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
    let usage = || {
        let limit = &sidecar.json("/api/v1/limits")["concurrency"][0];
        (
            limit["in_flight"].as_u64().unwrap(),
            limit["pending"].as_u64().unwrap(),
        )
    };
    for (client, expected) in clients.iter_mut().zip([(1, 0), (2, 0), (2, 1)]) {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("it is counted", || usage() == expected);
    }
    let refusal = sidecar.get("/");
    assert_eq!(
        (
            refusal.status,
            refusal.reason(),
            refusal.header("retry-after")
        ),
        (503, "concurrency_limit:app", Some("1"))
    );
    eventually("two have arrived", || backend.seen().len() == 2);
    for _ in 0..3 {
        gate.open();
    }
    for mut client in clients {
        assert_eq!(client.answer().text(), "done");
    }
    eventually("all places are free", || usage() == (0, 0));
    assert_eq!(backend.seen().len(), 3);
}

#[test]
fn who_waits_too_long_or_leaves_gives_the_place_in_the_queue_up() {
    let (backend, gate) = gated();
    let limits = "  defaults: {connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 5, pendingTimeout: 30ms}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], limits));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let late = sidecar.get("/");
    assert_eq!((late.status, late.reason()), (503, "queue_timeout:app"));
    gate.open();
    assert_eq!(first.answer().text(), "done");
    assert_eq!(
        sidecar.json("/api/v1/limits")["concurrency"][0]["pending"],
        0
    );
}

#[test]
fn a_client_that_leaves_the_queue_is_not_sent_on() {
    let (backend, gate) = gated();
    let limits = "  defaults: {connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 5, pendingTimeout: 1h}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], limits));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let mut second = sidecar.client();
    second.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let pending = || {
        sidecar.json("/api/v1/limits")["concurrency"][0]["pending"]
            .as_u64()
            .unwrap()
    };
    eventually("it waits", || pending() == 1);
    drop(second);
    eventually("it has left the queue", || pending() == 0);
    gate.open();
    assert_eq!(first.answer().text(), "done");
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn connections_to_a_backend_are_bounded() {
    let (backend, gate) = gated();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {connectionLimits: {maxConnections: 1}}\n",
    ));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let refusal = sidecar.get("/");
    assert_eq!(
        (refusal.status, refusal.reason()),
        (503, "connection_limit:app")
    );
    gate.open();
    assert_eq!(first.answer().text(), "done");
}

#[test]
fn an_endpoint_gets_no_more_connections_than_it_may_and_the_others_take_over() {
    let gate = Gate::new();
    let there = gate.clone();
    let slow = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            there.pass();
            connection.send(ok("slow"));
        }
    });
    let quick = Backend::healthy();
    let limits = "  defaults: {connectionLimits: {maxConnectionsPerEndpoint: 1}}\n";
    let sidecar = Sidecar::start(&policy(&[slow.address, quick.address], limits).replace(
        "]}\n  routes",
        "], loadBalancer: {type: RoundRobin}}\n  routes",
    ));
    let mut waiting = sidecar.client();
    let mut busy = 0;
    while busy == 0 {
        // One of the first two goes to the slow one.
        waiting = sidecar.client();
        waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("it has arrived", || {
            slow.seen().len() + quick.seen().len() > 0
        });
        busy = slow.seen().len();
    }
    // One after the other: on one connection the next request is read when the one before is through.
    let mut client = sidecar.client();
    eventually("the quick one is free", || {
        client.get("/").text() == "hello"
    });
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "hello", "the slow one is busy");
    }
    assert_eq!(slow.connections(), 1);
    gate.open();
    assert_eq!(waiting.answer().text(), "slow");
}

#[test]
fn when_the_only_endpoint_left_is_full_it_is_said_at_once() {
    let gate = Gate::new();
    let there = gate.clone();
    let slow = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            there.pass();
            connection.send(ok("slow"));
        }
    });
    let sick = Backend::answering(|_| answer(500, "ill"));
    let limits = "  defaults: {connectionLimits: {maxConnectionsPerEndpoint: 1}}\n";
    let out = "], outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 10m, maxEjectionTime: 10m}}\n  routes";
    let sidecar =
        Sidecar::start(&policy(&[sick.address, slow.address], limits).replace("]}\n  routes", out));
    let mut waiting = Vec::new();
    eventually("the sick one is out, and the other is busy", || {
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        waiting.push(client);
        slow.seen().len() == 1
            && sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#) == 1.0
    });
    assert_eq!(
        sidecar.get("/").reason(),
        format!("connection_limit:{}", slow.address)
    );
    waiting.iter().for_each(|_| gate.open());
}

#[test]
fn connections_of_clients_are_bounded() {
    let backend = Backend::healthy();
    let text = policy(&[backend.address], "").replace(
        "address: \"127.0.0.1:0\"",
        "address: \"127.0.0.1:0\", limits: {maxConnections: 2}",
    );
    let sidecar = Sidecar::start(&text);
    let mut held = [sidecar.client(), sidecar.client()];
    assert!(held.iter_mut().all(|client| client.get("/").status == 200));
    assert!(sidecar.client().is_closed());
    assert_eq!(
        sidecar.metric(r#"outrigger_connections_refused_total{listener="inbound"}"#),
        1.0
    );
    drop(held);
    eventually("a place is free", || {
        let mut client = sidecar.client();
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            && client
                .try_answer()
                .is_some_and(|answer| answer.status == 200)
    });
}

fn adaptive(sidecar: &Sidecar) -> u64 {
    sidecar.json("/api/v1/limits")["concurrency"][0]["adaptive"]["limit"]
        .as_u64()
        .unwrap()
}

#[test]
fn an_adaptive_limit_refuses_below_the_written_one_and_only_counts_in_shadow() {
    for (mode, status) in [("Enforce", 503), ("Shadow", 200)] {
        let (backend, gate) = gated();
        let limits = format!(
            "  defaults: {{connectionLimits: {{maxParallelRequests: 100, maxPendingRequests: 0, adaptive: {{mode: {mode}, minLimit: 2}}}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
        let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            eventually("it has arrived, or was refused", || {
                backend.seen().len() == (number + 1).min(if status == 503 { 2 } else { 3 })
            });
        }
        (0..3).for_each(|_| gate.open());
        assert_eq!(
            clients
                .iter_mut()
                .map(|client| client.answer().status)
                .collect::<Vec<_>>(),
            [200, 200, status],
            "{mode}"
        );
        let shadow = sidecar
            .metric(r#"outrigger_shadow_refusals_total{route="in",reason="concurrency_limit"}"#);
        assert_eq!(shadow, if mode == "Shadow" { 1.0 } else { 0.0 });
        assert_eq!(
            sidecar.metric(r#"outrigger_limit_max_in_flight{limit="app"}"#),
            if mode == "Shadow" { 100.0 } else { 2.0 }
        );
    }
}

#[test]
fn an_adaptive_limit_rises_while_answers_take_no_longer_for_it_and_falls_when_the_backend_refuses()
{
    let backend = Backend::answering(|seen| {
        if seen.line().contains("/busy") {
            answer(503, "busy")
        } else {
            ok("fine")
        }
    });
    for algorithm in ["Gradient2", "Vegas", "AIMD"] {
        let limits = format!(
            "  defaults: {{connectionLimits: {{adaptive: {{algorithm: {algorithm}, minLimit: 1}}}}, retry: {{mode: Off}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[backend.address], &limits));
        let mut client = sidecar.client();
        let begins_with = adaptive(&sidecar);
        if algorithm != "AIMD" {
            // One client keeps a limit of one busy.
            eventually("it has risen", || {
                client.get("/").status == 200 && adaptive(&sidecar) > begins_with
            });
        }
        let risen = adaptive(&sidecar);
        eventually("it has fallen", || {
            client.get("/busy").status == 503 && adaptive(&sidecar) < risen
        });
    }
}

#[test]
fn a_share_of_the_requests_to_a_backend_that_fails_is_refused_and_none_when_it_is_well() {
    for mode in ["Enforce", "Shadow"] {
        let (backend, is_broken) = Backend::switchable();
        let section = format!(
            "  defaults: {{admissionControl: {{mode: {mode}, samplingWindow: 1s, minRequestRate: 1}}, retry: {{mode: Off}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[backend.address], &section));
        let mut client = sidecar.client();
        let mut refused = || client.get("/").reason() == "admission_control:app";
        if mode == "Shadow" {
            assert_eq!((0..200).filter(|_| refused()).count(), 0);
            assert!(
                sidecar.metric(
                    r#"outrigger_shadow_refusals_total{route="in",reason="admission_control"}"#
                ) >= 100.0
            );
            continue;
        }
        eventually("most are refused", || {
            refused()
                && sidecar.metric(r#"outrigger_admission_rejection_ratio{admission="app"}"#) == 0.8
        });
        let before = backend.seen().len();
        let passed = 500 - (0..500).filter(|_| refused()).count();
        assert!((50..=150).contains(&passed), "one of five: {passed}");
        assert_eq!(backend.seen().len() - before, passed);
        is_broken.store(false, std::sync::atomic::Ordering::SeqCst);
        eventually("nobody is refused", || {
            !refused()
                && sidecar.metric(r#"outrigger_admission_rejection_ratio{admission="app"}"#) == 0.0
        });
    }
}

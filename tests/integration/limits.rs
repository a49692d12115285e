//! Rate limits and concurrency limits on the wire.

use crate::support::{
    Backend, Client, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    sidecar::policy,
};

fn limited(rules: &str) -> String {
    format!("  defaults:\n    rateLimit:\n      local:\n        rules:\n{rules}")
}

const PER_KEY: &str = "          - {name: per-key, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Minute, burst: 3}}\n";
const ALL: &str = "          - {name: all, limit: {requests: 1, unit: Minute, burst: 5}}\n";

fn ask(client: &mut Client, key: &str) -> (u16, String) {
    let answer = client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n")).answer();
    (answer.status, answer.reason().to_owned())
}

#[test]
fn a_bucket_lets_its_burst_through_and_then_says_when_to_come_back() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], &limited(ALL)));
    let mut client = sidecar.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    let refusal = client.get("/");
    assert_eq!((refusal.status, refusal.reason()), (429, "rate_limited:all"));
    let wait: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!((58..=60).contains(&wait), "a token comes back each minute: {wait}");
    assert_eq!(refusal.header("ratelimit-policy"), Some("\"all\";q=1;w=60"));
    assert_eq!(refusal.header("ratelimit"), Some(format!("\"all\";r=0;t={wait}").as_str()));
    assert_eq!(client.get("/").status, 429, "the connection goes on");
    assert_eq!(backend.seen().len(), 5);
    eventually("both are counted", || sidecar.metric(r#"outrigger_refusals_total{route="in",reason="rate_limited"}"#) == 2.0);
}

#[test]
fn each_key_has_a_bucket_of_its_own_and_who_has_no_key_is_not_meant() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], &limited(PER_KEY)));
    let mut client = sidecar.client();
    for key in ["a", "b"] {
        for _ in 0..3 {
            assert_eq!(ask(&mut client, key).0, 200, "{key}");
        }
        assert_eq!(ask(&mut client, key), (429, "rate_limited:per-key".to_owned()));
    }
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(sidecar.json("/api/v1/limits")["rate"][0]["keys"], 2);
}

#[test]
fn a_noisy_client_does_not_drain_the_bucket_of_all() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], &limited(&format!("{ALL}{PER_KEY}"))));
    let mut client = sidecar.client();
    for _ in 0..100 {
        ask(&mut client, "noisy");
    }
    assert_eq!([ask(&mut client, "quiet").0, ask(&mut client, "quiet").0], [200, 200], "its own bucket is asked first, although it is written last");
    assert_eq!(ask(&mut client, "quiet"), (429, "rate_limited:all".to_owned()));
}

#[test]
fn keys_are_bounded_and_the_rest_share_one_bucket() {
    let backend = Backend::healthy();
    let text = limited(PER_KEY).replace("rateLimit:\n", "rateLimit:\n      maxKeys: 16\n");
    let sidecar = Sidecar::start(&policy(&[backend.address], &text));
    let mut client = sidecar.client();
    let passed = (0..500).filter(|key| ask(&mut client, &format!("k{key}")).0 == 200).count();
    let usage = &sidecar.json("/api/v1/limits")["rate"][0];
    let (keys, overflowed) = (usage["keys"].as_u64().unwrap(), usage["overflowed"].as_u64().unwrap());
    assert!(keys <= 16, "{keys}");
    assert_eq!(overflowed, 500 - keys);
    // The overflow bucket has three tokens for all of them together.
    assert_eq!(passed as u64, keys + 3, "{passed} of {keys} keys passed: a new key is no way to a new bucket");
}

#[test]
fn selectors_by_address_and_by_value_and_a_cost() {
    let backend = Backend::healthy();
    let rules = "          - {name: loopback, clientSelectors: [{sourceCIDR: {value: 127.0.0.0/8, type: Distinct}, headers: [{name: x-plan, value: free}]}], limit: {requests: 1, unit: Hour, burst: 4}, cost: {request: {from: Number, number: 2}}}\n          \
                 - {name: elsewhere, clientSelectors: [{sourceCIDR: {value: 10.0.0.0/8}}], limit: {requests: 1, unit: Hour}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], &limited(rules)));
    let mut client = sidecar.client();
    let mut ask = |plan: &str| client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-plan: {plan}\r\n\r\n")).answer().status;
    assert_eq!(["free", "free", "free", "paid", "paid"].map(&mut ask), [200, 200, 429, 200, 200]);
}

#[test]
fn a_limit_in_shadow_mode_counts_and_refuses_nobody() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], &limited(&ALL.replace("name: all,", "name: all, mode: Shadow,"))));
    let mut client = sidecar.client();
    for _ in 0..8 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="rate_limited"}"#), 3.0);
}

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
        (limit["in_flight"].as_u64().unwrap(), limit["pending"].as_u64().unwrap())
    };
    for (client, expected) in clients.iter_mut().zip([(1, 0), (2, 0), (2, 1)]) {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("it is counted", || usage() == expected);
    }
    let refusal = sidecar.get("/");
    assert_eq!((refusal.status, refusal.reason(), refusal.header("retry-after")), (503, "concurrency_limit:app", Some("1")));
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
    assert_eq!(sidecar.json("/api/v1/limits")["concurrency"][0]["pending"], 0);
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
    let pending = || sidecar.json("/api/v1/limits")["concurrency"][0]["pending"].as_u64().unwrap();
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
    let sidecar = Sidecar::start(&policy(&[backend.address], "  defaults: {connectionLimits: {maxConnections: 1}}\n"));
    let mut first = sidecar.client();
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let refusal = sidecar.get("/");
    assert_eq!((refusal.status, refusal.reason()), (503, "connection_limit:app"));
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
    let sidecar = Sidecar::start(&policy(&[slow.address, quick.address], limits).replace("]}\n  routes", "], loadBalancer: {type: RoundRobin}}\n  routes"));
    let mut waiting = sidecar.client();
    let mut busy = 0;
    while busy == 0 {
        // One of the first two goes to the slow one.
        waiting = sidecar.client();
        waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually("it has arrived", || slow.seen().len() + quick.seen().len() > 0);
        busy = slow.seen().len();
    }
    // One after the other: on one connection the next request is read when the one before is through.
    let mut client = sidecar.client();
    eventually("the quick one is free", || client.get("/").text() == "hello");
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
    let sidecar = Sidecar::start(&policy(&[sick.address, slow.address], limits).replace("]}\n  routes", out));
    let mut waiting = Vec::new();
    eventually("the sick one is out, and the other is busy", || {
        let mut client = sidecar.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        waiting.push(client);
        slow.seen().len() == 1 && sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#) == 1.0
    });
    assert_eq!(sidecar.get("/").reason(), format!("connection_limit:{}", slow.address));
    waiting.iter().for_each(|_| gate.open());
}

#[test]
fn connections_of_clients_are_bounded() {
    let backend = Backend::healthy();
    let text = policy(&[backend.address], "").replace("address: \"127.0.0.1:0\"", "address: \"127.0.0.1:0\", limits: {maxConnections: 2}");
    let sidecar = Sidecar::start(&text);
    let mut held = [sidecar.client(), sidecar.client()];
    assert!(held.iter_mut().all(|client| client.get("/").status == 200));
    assert!(sidecar.client().is_closed());
    assert_eq!(sidecar.metric(r#"outrigger_connections_refused_total{listener="inbound"}"#), 1.0);
    drop(held);
    eventually("a place is free", || {
        let mut client = sidecar.client();
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n") && client.try_answer().is_some_and(|answer| answer.status == 200)
    });
}

//! Load balancing: algorithms, weights, priorities, zones, slow start, Unix domain sockets.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{
    ScriptedBackend, Sidecar, TempDirectory,
    backend::{ok_response, response},
    eventually,
    policy::PolicyBuilder,
};

/// Returns a policy whose backend has these endpoints and fields.
fn policy_with_fields(backends: &[&ScriptedBackend], fields: &str) -> String {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    PolicyBuilder::new(&addresses)
        .backend_fields(fields)
        .build()
}

/// Sends requests on one connection, and returns how many of them each backend received.
fn requests_per_backend(
    sidecar: &Sidecar,
    backends: &[&ScriptedBackend],
    requests: usize,
) -> Vec<usize> {
    let mut client = sidecar.client();
    count_new_requests(backends, || {
        for _ in 0..requests {
            client.get("/");
        }
    })
}

/// Returns how many requests each backend receives while `send_requests` runs.
fn count_new_requests(backends: &[&ScriptedBackend], send_requests: impl FnOnce()) -> Vec<usize> {
    let before: Vec<usize> = backends
        .iter()
        .map(|backend| backend.requests().len())
        .collect();
    send_requests();
    backends
        .iter()
        .zip(before)
        .map(|(backend, before)| backend.requests().len() - before)
        .collect()
}

#[test]
fn every_load_balancer_applies_the_endpoint_weights() {
    let (heavy, light) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let weighted = PolicyBuilder::new(&[])
        .endpoint(format!("{{address: \"{}\", weight: 4}}", heavy.address))
        .endpoint(light.address.to_string());
    for algorithm in ["LeastRequest", "RoundRobin", "Random"] {
        let policy = weighted
            .clone()
            .backend_fields(format!("loadBalancer: {{type: {algorithm}}}"));
        let sidecar = Sidecar::start(&policy.build());
        let shares = requests_per_backend(&sidecar, &[&heavy, &light], 400);
        if algorithm == "RoundRobin" {
            assert_eq!(shares, [320, 80]);
        } else {
            assert!((40..=130).contains(&shares[1]), "{algorithm}: {shares:?}");
        }
    }
}

#[test]
fn consistent_hash_moves_only_the_keys_of_a_removed_endpoint() {
    let backends = [
        ScriptedBackend::healthy(),
        ScriptedBackend::healthy(),
        ScriptedBackend::healthy(),
    ];
    let backends = [&backends[0], &backends[1], &backends[2]];
    let hash = "loadBalancer: {type: ConsistentHash, \
                consistentHash: {type: Cookie, cookie: {name: user}}}";
    let sidecar = Sidecar::start(&policy_with_fields(&backends, hash));
    let selected_backend = |user: usize| {
        let counts = count_new_requests(&backends, || {
            for _ in 0..3 {
                sidecar
                    .client()
                    .send(format!(
                        "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; user={user}; b=2\r\n\r\n"
                    ))
                    .read_response();
            }
        });
        counts
            .iter()
            .position(|count| *count == 3)
            .unwrap_or_else(|| panic!("the requests of a user are split: {counts:?}"))
    };
    // The hash depends on the ports, which differ in each run. Few users could miss a backend.
    let selected: Vec<usize> = (0..60).map(selected_backend).collect();
    assert!(
        (0..3).all(|backend| selected.contains(&backend)),
        "{selected:?}"
    );
    sidecar.reload(&policy_with_fields(&backends[..2], hash));
    for (user, before) in selected.iter().enumerate() {
        let after = selected_backend(user);
        assert!(
            after == *before || *before == 2,
            "user {user} moves from {before} to {after}"
        );
    }
}

#[test]
fn fast_error_responses_do_not_attract_traffic() {
    let failing = ScriptedBackend::responding_with(|_| response(503, "busy"));
    let slow = |_: &crate::support::backend::ReceivedRequest| {
        crate::support::simulate_delay(std::time::Duration::from_millis(3));
        ok_response("healthy")
    };
    let healthy = [
        ScriptedBackend::responding_with(slow),
        ScriptedBackend::responding_with(slow),
    ];
    let backends = [&failing, &healthy[0], &healthy[1]];
    let sidecar = Sidecar::start(&policy_with_fields(
        &backends,
        "loadBalancer: {type: PeakEwma}",
    ));
    let shares = requests_per_backend(&sidecar, &backends, 150);
    assert!(shares[0] <= 4, "{shares:?}");
}

#[test]
fn requests_are_sent_to_the_next_priority_while_the_first_is_unhealthy() {
    let ((first, is_broken), second) = (ScriptedBackend::switchable(), ScriptedBackend::healthy());
    is_broken.store(false, Ordering::SeqCst);
    let policy = PolicyBuilder::to_backend(&first)
        .endpoint(format!("{{address: \"{}\", priority: 1}}", second.address))
        .backend_fields(
            "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, \
             unhealthyThreshold: 1, healthyThreshold: 1, http: {path: /healthz}}}",
        );
    let sidecar = Sidecar::start(&policy.build());
    let response_text = || sidecar.get("/").text();
    assert_eq!(response_text(), "fine");
    is_broken.store(true, Ordering::SeqCst);
    eventually("requests are sent to the next priority", || {
        response_text() == "hello"
    });
    is_broken.store(false, Ordering::SeqCst);
    eventually("requests are sent to the first priority", || {
        response_text() == "fine"
    });
}

#[test]
fn endpoints_in_the_local_zone_are_preferred() {
    let (local_endpoint, remote_endpoint) =
        (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let policy = PolicyBuilder::new(&[])
        .endpoint(format!(
            "{{address: \"{}\", zone: a}}",
            local_endpoint.address
        ))
        .endpoint(format!(
            "{{address: \"{}\", zone: b}}",
            remote_endpoint.address
        ));
    for (fields, remote_min) in [
        ("healthCheck: {panicThreshold: 50}", 0),
        ("loadBalancer: {zoneAware: {mode: Off}}", 20),
        (
            "loadBalancer: {zoneAware: {minEndpointsInZoneThreshold: 2}}",
            20,
        ),
    ] {
        let directory = TempDirectory::new();
        directory.write(
            "policy.yaml",
            &policy.clone().backend_fields(fields).build(),
        );
        let sidecar = Sidecar::start_with_settings(directory, |settings| {
            settings.zone = Some("a".to_owned())
        })
        .unwrap();
        let shares = requests_per_backend(&sidecar, &[&local_endpoint, &remote_endpoint], 100);
        assert!(
            shares[1] >= remote_min && (remote_min > 0 || shares[1] == 0),
            "{fields}: {shares:?}"
        );
    }
}

#[test]
fn slow_start_reduces_the_share_of_a_new_endpoint_until_its_window_ends() {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    for (started, expected) in [
        (None, 5..=25),
        (Some(now() - 300), 60..=72),
        (Some(now() - 3_600), 95..=105),
        (Some(now() + 60), 5..=25),
    ] {
        let old = ScriptedBackend::healthy();
        let new = ScriptedBackend::responding_with(move |_| match started {
            None => ok_response("hello"),
            Some(started) => format!(
                "HTTP/1.1 200 OK\r\nx-outrigger-started-at: {started}\r\ncontent-length: 0\r\n\r\n"
            ),
        });
        let slow_start = "loadBalancer: {type: RoundRobin, slowStart: {window: 600s}}";
        let sidecar = Sidecar::start(&policy_with_fields(&[&old], slow_start));
        sidecar.get("/");
        let reloaded = sidecar.reload(&policy_with_fields(&[&old, &new], slow_start));
        assert_eq!(reloaded.status, 200);
        // The first response of the new endpoint states its start time.
        eventually("the new endpoint receives a request", || {
            requests_per_backend(&sidecar, &[&new], 1) == [1]
        });
        // An endpoint with half its weight receives a third of the requests: 0.5 / 1.5.
        let shares = requests_per_backend(&sidecar, &[&old, &new], 200);
        assert!(
            expected.contains(&shares[1]),
            "started {started:?}: {shares:?}"
        );
    }
}

#[test]
fn responses_carry_the_start_time_of_the_instance() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&backend],
        "healthCheck: {panicThreshold: 50}",
    ));
    let started: f64 = sidecar
        .get("/")
        .header("x-outrigger-started-at")
        .unwrap()
        .parse()
        .unwrap();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!((now - 30.0..=now).contains(&started), "{started} at {now}");
}

#[test]
fn an_endpoint_may_be_a_unix_domain_socket() {
    let directory = TempDirectory::new();
    let path = directory.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(|| serve_unix_stream(stream.unwrap()));
        }
    });
    let policy = PolicyBuilder::new(&[])
        .endpoint(format!("unix:{}", path.display()))
        .backend_fields("healthCheck: {active: {type: HTTP, interval: 20ms, http: {path: /}}}");
    let sidecar = Sidecar::start(&policy.build());
    let mut client = sidecar.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "unix socket");
    }
    eventually("the active check passes", || {
        sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0]["health"] == "healthy"
    });
}

fn serve_unix_stream(mut stream: UnixStream) {
    let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        request.extend_from_slice(&chunk[..count]);
        if request.ends_with(b"\r\n\r\n") {
            assert!(
                String::from_utf8_lossy(&request).contains("host: "),
                "the request has a host header"
            );
            stream
                .write_all(ok_response("unix socket").as_bytes())
                .unwrap();
            request.clear();
        }
    }
}

#[test]
fn an_http_check_matches_the_body_and_uses_the_edge_and_unhealthy_intervals() {
    let is_unhealthy = Arc::new(AtomicBool::new(false));
    let shared_is_unhealthy = is_unhealthy.clone();
    let backend = ScriptedBackend::responding_with(move |_| {
        ok_response(if shared_is_unhealthy.load(Ordering::SeqCst) {
            "status: down"
        } else {
            "status: up"
        })
    });
    // With the interval alone, the threshold is reached only after `TEST_TIMEOUT`.
    let check = "healthCheck: {active: {type: HTTP, interval: 1s, unhealthyInterval: 20ms, \
                 edgeInterval: 10ms, jitterPercent: 0, unhealthyThreshold: 100, \
                 http: {path: /, expectedBody: \"status: up\"}}}";
    let sidecar = Sidecar::start(&policy_with_fields(&[&backend], check));
    let endpoint = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("the endpoint is healthy", || {
        endpoint()["health"] == "healthy"
    });
    is_unhealthy.store(true, Ordering::SeqCst);
    eventually("the endpoint is unhealthy", || {
        endpoint()["health"] == "unhealthy"
    });
    assert_eq!(
        endpoint()["last_check"],
        "the body does not contain `expectedBody`"
    );
    let before = backend.requests().len();
    eventually("checks use the unhealthy interval", || {
        backend.requests().len() > before + 100
    });
    is_unhealthy.store(false, Ordering::SeqCst);
    eventually("the endpoint is healthy again", || {
        endpoint()["health"] == "healthy"
    });
}

#[test]
fn the_last_endpoint_receives_requests_even_if_it_is_ejected() {
    let ((failing, is_broken), healthy) =
        (ScriptedBackend::switchable(), ScriptedBackend::healthy());
    let outlier_detection =
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with_fields(
        &[&failing, &healthy],
        outlier_detection,
    ));
    let mut client = sidecar.client();
    eventually("the failing endpoint is ejected", || {
        client.get("/");
        sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#) == 1.0
    });
    // The healthy endpoint is removed, so the ejected one is the last.
    let reloaded = sidecar.reload(&policy_with_fields(&[&failing], outlier_detection));
    assert_eq!(reloaded.status, 200);
    assert_eq!(
        client.get("/").text(),
        "broken",
        "the response of the ejected endpoint is forwarded"
    );
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(client.get("/").text(), "fine");
}

//! Who is asked: algorithms, weights, priorities, zones, warm-up, Unix sockets.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{
    ScriptedBackend, Sidecar, TempDirectory,
    backend::{ok_response, response},
    eventually,
    policy::{policy_with_backend_fields, quoted_addresses},
};

/// How many of so many requests each backend saw.
fn requests_per_backend(
    sidecar: &Sidecar,
    backends: &[&ScriptedBackend],
    requests: usize,
) -> Vec<usize> {
    let before: Vec<usize> = backends
        .iter()
        .map(|backend| backend.requests().len())
        .collect();
    let mut client = sidecar.client();
    for _ in 0..requests {
        client.get("/");
    }
    backends
        .iter()
        .zip(before)
        .map(|(backend, before)| backend.requests().len() - before)
        .collect()
}

#[test]
fn every_load_balancer_honours_the_endpoint_weights() {
    let (heavy, light) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let weighted = [
        format!("{{address: \"{}\", weight: 4}}", heavy.address),
        format!("\"{}\"", light.address),
    ];
    for algorithm in ["LeastRequest", "RoundRobin", "Random"] {
        let sidecar = Sidecar::start(&policy_with_backend_fields(
            &weighted,
            &format!("loadBalancer: {{type: {algorithm}}}"),
            "",
        ));
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
    let all = quoted_addresses(&backends.iter().collect::<Vec<_>>());
    let hash = "loadBalancer: {type: ConsistentHash, consistentHash: {type: Cookie, cookie: {name: user}}}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(&all, hash, ""));
    let owner = |user: usize| {
        let before: Vec<usize> = backends
            .iter()
            .map(|backend| backend.requests().len())
            .collect();
        for _ in 0..3 {
            let mut client = sidecar.client();
            client
                .send(format!(
                    "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; user={user}; b=2\r\n\r\n"
                ))
                .read_response();
        }
        let hits: Vec<usize> = backends
            .iter()
            .zip(before)
            .map(|(backend, before)| backend.requests().len() - before)
            .collect();
        assert!(hits.contains(&3), "all three went to one: {hits:?}");
        hits.iter().position(|hits| *hits == 3).unwrap()
    };
    // Ports are drawn anew for each run: of so few users as ten, all might fall to two of three.
    let owners: Vec<usize> = (0..60).map(owner).collect();
    assert!(
        (0..3).all(|backend| owners.contains(&backend)),
        "{owners:?}"
    );
    sidecar.reload(&policy_with_backend_fields(&all[..2], hash, ""));
    for (user, before) in owners.iter().enumerate() {
        let now = owner(user);
        assert!(
            now == *before || *before == 2,
            "user {user} moved from {before} to {now}"
        );
    }
}

#[test]
fn fast_error_responses_do_not_attract_traffic() {
    let failing = ScriptedBackend::responding_with(|_| response(503, "busy"));
    let slow = |_: &crate::support::backend::ReceivedRequest| {
        crate::support::simulate_delay(std::time::Duration::from_millis(3));
        ok_response("fine")
    };
    let good = [
        ScriptedBackend::responding_with(slow),
        ScriptedBackend::responding_with(slow),
    ];
    let backends = [&failing, &good[0], &good[1]];
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&backends),
        "loadBalancer: {type: PeakEwma}",
        "",
    ));
    let shares = requests_per_backend(&sidecar, &backends, 150);
    assert!(shares[0] <= 4, "{shares:?}");
}

#[test]
fn the_next_priority_takes_over_when_the_first_is_unhealthy() {
    let (sick, spare) = (ScriptedBackend::switchable(), ScriptedBackend::healthy());
    let (first, is_broken) = sick;
    is_broken.store(false, std::sync::atomic::Ordering::SeqCst);
    let endpoints = [
        format!("\"{}\"", first.address),
        format!("{{address: \"{}\", priority: 1}}", spare.address),
    ];
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, http: {path: /healthz}}}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(&endpoints, check, ""));
    let served_by = || sidecar.get("/").text();
    assert_eq!(served_by(), "fine");
    is_broken.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("the spare takes over", || served_by() == "hello");
    is_broken.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("the first is asked again", || served_by() == "fine");
}

#[test]
fn endpoints_in_the_local_zone_are_preferred() {
    let (local_endpoint, remote_endpoint) =
        (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let endpoints = [
        format!("{{address: \"{}\", zone: a}}", local_endpoint.address),
        format!("{{address: \"{}\", zone: b}}", remote_endpoint.address),
    ];
    for (extra, expected) in [
        ("panic", 0),
        ("loadBalancer: {zoneAware: {mode: Off}}", 20),
        (
            "loadBalancer: {zoneAware: {minEndpointsInZoneThreshold: 2}}",
            20,
        ),
    ] {
        let extra = if extra == "panic" {
            "healthCheck: {panicThreshold: 50}"
        } else {
            extra
        };
        let directory = TempDirectory::new();
        directory.write(
            "policy.yaml",
            &policy_with_backend_fields(&endpoints, extra, ""),
        );
        let sidecar = Sidecar::start_with_settings(directory, |settings| {
            settings.zone = Some("a".to_owned())
        })
        .unwrap();
        let shares = requests_per_backend(&sidecar, &[&local_endpoint, &remote_endpoint], 100);
        assert!(
            shares[1] >= expected && (expected > 0 || shares[1] == 0),
            "{extra}: {shares:?}"
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
        let extra = "loadBalancer: {type: RoundRobin, slowStart: {window: 600s}}";
        let sidecar = Sidecar::start(&policy_with_backend_fields(
            &quoted_addresses(&[&old]),
            extra,
            "",
        ));
        sidecar.get("/");
        assert_eq!(
            sidecar
                .reload(&policy_with_backend_fields(
                    &quoted_addresses(&[&old, &new]),
                    extra,
                    ""
                ))
                .status,
            200
        );
        // It tells of its start with its first answer.
        eventually("it was asked", || {
            requests_per_backend(&sidecar, &[&new], 1) == [1]
        });
        // Half as warm is a third of all: 0.5 / 1.5.
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
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&backend]),
        "healthCheck: {panicThreshold: 50}",
        "",
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
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &[format!("\"unix:{}\"", path.display())],
        "healthCheck: {active: {type: HTTP, interval: 20ms, http: {path: /}}}",
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "from a file");
    }
    eventually("its check passes", || {
        sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0]["health"] == "healthy"
    });
}

fn serve_unix_stream(mut stream: UnixStream) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..count]);
        if seen.ends_with(b"\r\n\r\n") {
            assert!(
                String::from_utf8_lossy(&seen).contains("host: "),
                "there is a host"
            );
            stream
                .write_all(ok_response("from a file").as_bytes())
                .unwrap();
            seen.clear();
        }
    }
}

#[test]
fn an_http_check_matches_the_body_and_uses_the_edge_and_unhealthy_intervals() {
    let is_ill = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let shared_is_ill = is_ill.clone();
    let backend = ScriptedBackend::responding_with(move |_| {
        ok_response(if shared_is_ill.load(std::sync::atomic::Ordering::SeqCst) {
            "status: down"
        } else {
            "status: up"
        })
    });
    // The interval alone would take longer than this test's patience.
    let check = "healthCheck: {active: {type: HTTP, interval: 1s, unhealthyInterval: 20ms, edgeInterval: 10ms, jitterPercent: 0, unhealthyThreshold: 100, http: {path: /, expectedBody: \"status: up\"}}}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&backend]),
        check,
        "",
    ));
    let health = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("it is healthy", || health()["health"] == "healthy");
    is_ill.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("it is unhealthy", || health()["health"] == "unhealthy");
    assert_eq!(
        health()["last_check"],
        "the expected words are not in the body"
    );
    let before = backend.requests().len();
    eventually("it is looked at often", || {
        backend.requests().len() > before + 100
    });
    is_ill.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("it is healthy again", || health()["health"] == "healthy");
}

#[test]
fn the_last_endpoint_receives_requests_even_if_it_is_ejected() {
    let (first, second) = (ScriptedBackend::switchable(), ScriptedBackend::healthy());
    let outlier_detection =
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 10m, maxEjectionTime: 10m}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&first.0, &second]),
        outlier_detection,
        "",
    ));
    let mut client = sidecar.client();
    eventually("it is ejected", || {
        client.get("/");
        sidecar.metric(r#"outrigger_backend_endpoints_ejected{backend="app"}"#) == 1.0
    });
    // The other leaves: the one that is ejected is the last.
    assert_eq!(
        sidecar
            .reload(&policy_with_backend_fields(
                &quoted_addresses(&[&first.0]),
                outlier_detection,
                ""
            ))
            .status,
        200
    );
    assert_eq!(
        client.get("/").text(),
        "broken",
        "it answers, however badly"
    );
    first.1.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(client.get("/").text(), "fine");
}

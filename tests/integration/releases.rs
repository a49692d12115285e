//! Releasing at full load: instances come and go, and nobody notices.

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar, TempDirectory,
    backend::ok_response,
    eventually,
    fleet::{Fleet, FleetTimings},
    policy::{policy, policy_with_backend_fields, quoted_addresses},
    process::SocketActivatedProcess,
};

/// Requests that go on at once.
const CLIENTS: usize = 8;

#[test]
fn rolling_releases_at_full_load_fail_no_request_and_repeat_no_payment() {
    let clocks = FleetTimings {
        drain_section: "{delay: 600ms, quietPeriod: 50ms, softTimeout: 700ms, timeout: 10s}",
        endpoint_update_delay: Duration::from_millis(300),
    };
    let mut fleet = Fleet::start(clocks);
    let load = fleet.start_load(1);
    for _ in 0..2 {
        fleet.replace_all_instances();
    }
    load.stop_and_verify();
}

#[test]
fn no_request_is_sent_to_an_endpoint_after_its_drain_header() {
    let drain_observations = Arc::new(Mutex::new((None::<Instant>, Duration::ZERO, 0)));
    let (is_draining, shared_observations) =
        (Arc::new(AtomicBool::new(false)), drain_observations.clone());
    let shared_is_draining = is_draining.clone();
    let draining = ScriptedBackend::responding_with(move |_| {
        let mut drain_observations = shared_observations.lock().unwrap();
        drain_observations.2 += 1;
        if !shared_is_draining.load(Ordering::SeqCst) {
            return ok_response("done");
        }
        let first = *drain_observations.0.get_or_insert_with(Instant::now);
        drain_observations.1 = first.elapsed();
        "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl=60\r\ncontent-length: 4\r\n\r\ndone"
            .to_owned()
    });
    let serving = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&draining, &serving]),
        "loadBalancer: {type: RoundRobin}",
        "",
    ));
    let count = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = sidecar.client();
                while count.fetch_add(1, Ordering::SeqCst) < 4_000 {
                    assert_eq!(client.get("/").status, 200);
                }
            });
        }
        eventually("both are asked", || {
            drain_observations.lock().unwrap().2 > 100
        });
        is_draining.store(true, Ordering::SeqCst);
    });
    let (first, last, _) = *drain_observations.lock().unwrap();
    assert!(
        first.is_some() && last < Duration::from_millis(100),
        "still asked {last:?} after it said that it leaves"
    );
}

#[test]
fn killing_an_instance_fails_at_most_its_requests_in_flight() {
    let payment_counts = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let app = || {
        let payment_counts = payment_counts.clone();
        ScriptedBackend::responding_with(move |seen| {
            *payment_counts
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&seen.body).into_owned())
                .or_default() += 1;
            ok_response("done")
        })
    };
    let (killed_app, surviving_app) = (app(), app());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        &policy(&[killed_app.address], "").replace("127.0.0.1:0", &address.to_string()),
    );
    let killed = SocketActivatedProcess::start(&directory, &listener);
    // From now on nobody but the process holds it.
    drop(listener);
    let surviving = Sidecar::start(&policy(&[surviving_app.address], ""));
    let endpoints = [
        format!("\"{address}\""),
        format!("\"{}\"", surviving.address("inbound")),
    ];
    let caller = Sidecar::start(&policy_with_backend_fields(
        &endpoints,
        "loadBalancer: {type: RoundRobin}, outlierDetection: {}",
        "",
    ));
    let (response_count, is_stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (response_count, is_stopped, caller) = (&response_count, &is_stopped, &caller);
                scope.spawn(move || {
                    let (mut client, mut failures) = (caller.client(), 0);
                    for payment in 0.. {
                        if is_stopped.load(Ordering::SeqCst) {
                            break;
                        }
                        let response = client.post("/", &format!("{number} {payment}"));
                        failures += usize::from(response.status != 200);
                        if response.header("connection") == Some("close") {
                            client = caller.client();
                        }
                        response_count.fetch_add(1, Ordering::SeqCst);
                    }
                    failures
                })
            })
            .collect();
        eventually("both are asked", || killed_app.requests().len() > 100);
        killed.kill();
        let so_far = response_count.load(Ordering::SeqCst);
        eventually("the load goes on", || {
            response_count.load(Ordering::SeqCst) > so_far + 500
        });
        is_stopped.store(true, Ordering::SeqCst);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    assert!(
        failures.iter().all(|failures| *failures <= 1),
        "each client had one request in flight: {failures:?}"
    );
    assert!(
        payment_counts
            .lock()
            .unwrap()
            .values()
            .all(|count| *count == 1),
        "paid twice"
    );
}

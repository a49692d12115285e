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
    Backend, Directory, Sidecar,
    backend::ok,
    eventually,
    fleet::{Clocks, Fleet},
    process::Supervised,
    sidecar::{addresses, policy, policy_with},
};

/// Requests that go on at once.
const CLIENTS: usize = 8;

#[test]
fn rolling_releases_at_full_load_fail_no_request_and_repeat_no_payment() {
    let clocks = Clocks {
        drain: "{delay: 600ms, quietPeriod: 50ms, softTimeout: 700ms, timeout: 10s}",
        lag: Duration::from_millis(300),
    };
    let mut fleet = Fleet::start(clocks);
    let load = fleet.load(1);
    for _ in 0..2 {
        fleet.roll();
    }
    load.end();
}

#[test]
fn after_the_sign_a_caller_sends_nothing_more() {
    let told = Arc::new(Mutex::new((None::<Instant>, Duration::ZERO, 0)));
    let (is_leaving, there) = (Arc::new(AtomicBool::new(false)), told.clone());
    let leaves = is_leaving.clone();
    let leaving = Backend::answering(move |_| {
        let mut told = there.lock().unwrap();
        told.2 += 1;
        if !leaves.load(Ordering::SeqCst) {
            return ok("done");
        }
        let first = *told.0.get_or_insert_with(Instant::now);
        told.1 = first.elapsed();
        "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl=60\r\ncontent-length: 4\r\n\r\ndone"
            .to_owned()
    });
    let staying = Backend::healthy();
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&leaving, &staying]),
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
        eventually("both are asked", || told.lock().unwrap().2 > 100);
        is_leaving.store(true, Ordering::SeqCst);
    });
    let (first, last, _) = *told.lock().unwrap();
    assert!(
        first.is_some() && last < Duration::from_millis(100),
        "still asked {last:?} after it said that it leaves"
    );
}

#[test]
fn the_kill_of_an_instance_costs_at_most_what_was_in_flight_there() {
    let paid = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let app = || {
        let paid = paid.clone();
        Backend::answering(move |seen| {
            *paid
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&seen.body).into_owned())
                .or_default() += 1;
            ok("done")
        })
    };
    let (killed_app, staying_app) = (app(), app());
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let directory = Directory::new();
    directory.write(
        "policy.yaml",
        &policy(&[killed_app.address], "").replace("127.0.0.1:0", &address.to_string()),
    );
    let killed = Supervised::start(&directory, &held);
    // From now on nobody but the process holds it.
    drop(held);
    let staying = Sidecar::start(&policy(&[staying_app.address], ""));
    let endpoints = [
        format!("\"{address}\""),
        format!("\"{}\"", staying.address("inbound")),
    ];
    let caller = Sidecar::start(&policy_with(
        &endpoints,
        "loadBalancer: {type: RoundRobin}, outlierDetection: {}",
        "",
    ));
    let (answered, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (answered, is_over, caller) = (&answered, &is_over, &caller);
                scope.spawn(move || {
                    let (mut client, mut failures) = (caller.client(), 0);
                    for payment in 0.. {
                        if is_over.load(Ordering::SeqCst) {
                            break;
                        }
                        let answer = client.post("/", &format!("{number} {payment}"));
                        failures += usize::from(answer.status != 200);
                        if answer.header("connection") == Some("close") {
                            client = caller.client();
                        }
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    failures
                })
            })
            .collect();
        eventually("both are asked", || killed_app.seen().len() > 100);
        killed.kill();
        let so_far = answered.load(Ordering::SeqCst);
        eventually("the load goes on", || {
            answered.load(Ordering::SeqCst) > so_far + 500
        });
        is_over.store(true, Ordering::SeqCst);
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
        paid.lock().unwrap().values().all(|count| *count == 1),
        "paid twice"
    );
}

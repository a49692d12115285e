//! Rolling releases under load: no request fails while instances start, drain and end.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
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
    policy::{PolicyBuilder, policy},
    process::SocketActivatedProcess,
};

/// Number of clients, each with one request in flight.
const CLIENTS: usize = 8;

#[test]
fn rolling_releases_at_full_load_fail_no_request_and_execute_no_payment_twice() {
    let timings = FleetTimings {
        drain_section: "{delay: 600ms, quietPeriod: 50ms, softTimeout: 700ms, timeout: 10s}",
        endpoint_update_delay: Duration::from_millis(300),
    };
    let mut fleet = Fleet::start(timings);
    let load = fleet.start_load(1);
    for _ in 0..2 {
        fleet.replace_all_instances();
    }
    load.stop_and_verify();
}

/// Requests that a draining endpoint received.
#[derive(Default)]
struct DrainObservations {
    requests: usize,
    first_announced_at: Option<Instant>,
    last_announced_after: Duration,
}

#[test]
fn no_request_is_sent_to_an_endpoint_after_its_drain_header() {
    let observations = Arc::new(Mutex::new(DrainObservations::default()));
    let is_draining = Arc::new(AtomicBool::new(false));
    let (shared_observations, shared_is_draining) = (observations.clone(), is_draining.clone());
    let draining = ScriptedBackend::responding_with(move |_| {
        let mut observations = shared_observations.lock().unwrap();
        observations.requests += 1;
        if !shared_is_draining.load(Ordering::SeqCst) {
            return ok_response("done");
        }
        let first = *observations
            .first_announced_at
            .get_or_insert_with(Instant::now);
        observations.last_announced_after = first.elapsed();
        "HTTP/1.1 200 OK\r\nx-outrigger-draining: 1; ttl=60\r\ncontent-length: 4\r\n\r\ndone"
            .to_owned()
    });
    let serving = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(
        &PolicyBuilder::new(&[draining.address, serving.address])
            .backend_fields("loadBalancer: {type: RoundRobin}")
            .build(),
    );
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
        eventually("the endpoint receives over 100 requests", || {
            observations.lock().unwrap().requests > 100
        });
        is_draining.store(true, Ordering::SeqCst);
    });
    let observations = observations.lock().unwrap();
    let last = observations.last_announced_after;
    assert!(
        observations.first_announced_at.is_some() && last < Duration::from_millis(100),
        "a request was sent {last:?} after the first drain header"
    );
}

type PaymentCounts = Arc<Mutex<HashMap<String, u32>>>;

/// Starts a backend that counts the executions of each payment.
fn start_payment_app(payment_counts: &PaymentCounts) -> ScriptedBackend {
    let payment_counts = payment_counts.clone();
    ScriptedBackend::responding_with(move |request| {
        *payment_counts
            .lock()
            .unwrap()
            .entry(String::from_utf8_lossy(&request.body).into_owned())
            .or_default() += 1;
        ok_response("done")
    })
}

/// Starts a sidecar process that alone holds its socket, and returns the process and its address.
fn start_instance_process(
    directory: &TempDirectory,
    app: &ScriptedBackend,
) -> (SocketActivatedProcess, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let policy = PolicyBuilder::to_backend(app).listener_address(address);
    directory.write("policy.yaml", &policy.build());
    (SocketActivatedProcess::start(directory, &listener), address)
}

/// Sends payments until `is_stopped`, and returns the number of failed ones.
fn send_payments(
    sidecar: &Sidecar,
    client_number: usize,
    response_count: &AtomicUsize,
    is_stopped: &AtomicBool,
) -> usize {
    let (mut client, mut failures) = (sidecar.client(), 0);
    for payment in 0.. {
        if is_stopped.load(Ordering::SeqCst) {
            break;
        }
        let response = client.post("/", &format!("{client_number} {payment}"));
        failures += usize::from(response.status != 200);
        if response.header("connection") == Some("close") {
            client = sidecar.client();
        }
        response_count.fetch_add(1, Ordering::SeqCst);
    }
    failures
}

#[test]
fn killing_an_instance_fails_at_most_its_requests_in_flight() {
    let payment_counts = PaymentCounts::default();
    let killed_app = start_payment_app(&payment_counts);
    let surviving_app = start_payment_app(&payment_counts);
    let directory = TempDirectory::new();
    let (killed, killed_address) = start_instance_process(&directory, &killed_app);
    let surviving = Sidecar::start(&policy(&[surviving_app.address], ""));
    let client_sidecar = Sidecar::start(
        &PolicyBuilder::new(&[killed_address, surviving.address("inbound")])
            .backend_fields("loadBalancer: {type: RoundRobin}, outlierDetection: {}")
            .build(),
    );
    let (response_count, is_stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (response_count, is_stopped) = (&response_count, &is_stopped);
                let sidecar = &client_sidecar;
                scope.spawn(move || send_payments(sidecar, number, response_count, is_stopped))
            })
            .collect();
        eventually("the killed app has received 100 requests", || {
            killed_app.requests().len() > 100
        });
        killed.kill();
        let responses_before = response_count.load(Ordering::SeqCst);
        eventually("the load continues", || {
            response_count.load(Ordering::SeqCst) > responses_before + 500
        });
        is_stopped.store(true, Ordering::SeqCst);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    // The system closes the connections of a killed process one by one. A client can therefore
    // meet two of them, but each connection carries one request, and there is at most one
    // connection for each client.
    assert!(
        failures.iter().sum::<usize>() <= CLIENTS,
        "each connection loses at most the request in flight: {failures:?}"
    );
    assert!(
        payment_counts
            .lock()
            .unwrap()
            .values()
            .all(|count| *count == 1),
        "a payment was executed twice"
    );
}

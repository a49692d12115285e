//! The keep-alive race: an app closes an idle connection while a request is in flight.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    ScriptedBackend, Sidecar, backend::ok_response, policy::policy, simulate_delay,
};

/// Number of executions of each request, by its body.
type ExecutionCounts = Arc<Mutex<HashMap<String, usize>>>;

fn record_execution(execution_counts: &ExecutionCounts, body: &[u8]) {
    *execution_counts
        .lock()
        .unwrap()
        .entry(String::from_utf8_lossy(body).into_owned())
        .or_default() += 1;
}

/// Starts an app that closes each connection after one to three responses, each time after another
/// delay.
fn closing_backend() -> (ScriptedBackend, ExecutionCounts) {
    let execution_counts = ExecutionCounts::default();
    let shared_counts = execution_counts.clone();
    let closed_connections = AtomicUsize::new(0);
    let backend = ScriptedBackend::start(move |mut connection| {
        let responses = 1 + connection.number % 3;
        for _ in 0..responses {
            let Some(request) = connection.read_request() else {
                return;
            };
            record_execution(&shared_counts, &request.body);
            connection.send(ok_response("done"));
        }
        // The delays vary, so that closes coincide with requests in flight.
        let micros = closed_connections.fetch_add(1, Ordering::SeqCst) as u64 * 137 % 3_000;
        simulate_delay(Duration::from_micros(micros));
    });
    (backend, execution_counts)
}

#[test]
fn each_post_is_executed_exactly_once_while_the_app_closes_idle_connections() {
    let (backend, execution_counts) = closing_backend();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {retryConstraint: {minRetryRate: {count: 10000}}}\n",
    ));
    // Idempotent requests let the sidecar learn that this app closes idle connections early.
    let mut client = sidecar.client();
    for _ in 0..50 {
        client.get("/warm");
    }
    for number in 0..500 {
        let response = client.post("/", &format!("payment {number}"));
        assert_eq!(
            response.status,
            200,
            "payment {number}: {}",
            response.reason()
        );
        simulate_delay(Duration::from_micros(number * 61 % 4_000));
    }
    let execution_counts = execution_counts.lock().unwrap();
    for number in 0..500 {
        assert_eq!(
            execution_counts.get(&format!("payment {number}")),
            Some(&1),
            "payment {number}"
        );
    }
}

#[test]
fn each_get_succeeds_while_the_app_closes_idle_connections() {
    let (backend, _) = closing_backend();
    let retry = concat!(
        "  defaults:\n",
        "    retry:\n",
        "      attempts: 2\n",
        "      retryOn: [connect-failure, reset-before-request, reset]\n",
        "      codes: []\n",
        "    retryConstraint: {minRetryRate: {count: 10000}}\n"
    );
    let sidecar = Sidecar::start(&policy(&[backend.address], retry));
    let mut client = sidecar.client();
    for number in 0..500 {
        assert_eq!(client.get("/").status, 200, "request {number}");
        simulate_delay(Duration::from_micros(number * 61 % 4_000));
    }
}

/// `make soak` runs this test for half an hour, with the idle timeout of Node.
#[test]
fn posts_around_the_idle_timeout_of_the_app_are_executed_exactly_once() {
    let execution_counts = ExecutionCounts::default();
    let shared_counts = execution_counts.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.close_when_idle_for(Duration::from_millis(50));
        while let Some(request) = connection.read_request() {
            record_execution(&shared_counts, &request.body);
            connection.send(ok_response("done"));
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let clients = (0..10_u64).map(|client| {
        let mut connection = sidecar.client();
        std::thread::spawn(move || {
            for number in 0..60_u64 {
                assert_eq!(
                    connection.post("/", &format!("{client} {number}")).status,
                    200,
                    "post {number} of client {client}"
                );
                // Around the idle timeout, and far from it.
                let micros = [
                    48_000 + number * 97 % 4_000,
                    50_000,
                    number * 1_370 % 60_000,
                ][usize::try_from(number % 3).unwrap()];
                simulate_delay(Duration::from_micros(micros));
            }
        })
    });
    clients
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let execution_counts = execution_counts.lock().unwrap();
    assert_eq!(execution_counts.len(), 600);
    assert!(
        execution_counts.values().all(|count| *count == 1),
        "each request is executed once"
    );
}

/// The announced timeout applies before the sidecar has observed one.
#[test]
fn a_connection_is_not_reused_near_its_announced_keep_alive_timeout() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..5 {
        client.post("/", "x");
        simulate_delay(Duration::from_millis(2));
    }
    assert_eq!(backend.connections(), 5);
}

#[test]
fn a_connection_with_unsolicited_data_is_not_reused() {
    let backend = ScriptedBackend::start(|mut connection| {
        while connection.read_request().is_some() {
            connection.send(format!(
                "{}HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n",
                ok_response("done")
            ));
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "done");
    }
    assert_eq!(backend.connections(), 5);
}

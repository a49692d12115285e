//! The keep-alive race: an app that closes idle connections while requests are on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{ScriptedBackend, Sidecar, backend::ok_response, policy::policy};

/// An app that closes each connection some time after its answer, at ever other moments.
fn closing_backend() -> (ScriptedBackend, Arc<Mutex<HashMap<String, usize>>>) {
    let run_counts = Arc::new(Mutex::new(HashMap::new()));
    let shared_run_counts = run_counts.clone();
    let moment = AtomicUsize::new(0);
    let backend = ScriptedBackend::start(move |mut connection| {
        let responses = 1 + connection.number % 3;
        for _ in 0..responses {
            let Some(request) = connection.read_request() else {
                return;
            };
            *shared_run_counts
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok_response("done"));
        }
        // Not waiting for anything, only for a moment that no one can foresee.
        let micros = moment.fetch_add(1, Ordering::SeqCst) as u64 * 137 % 3_000;
        crate::support::simulate_delay(Duration::from_micros(micros));
    });
    (backend, run_counts)
}

#[test]
fn every_post_reaches_the_app_exactly_once_while_it_closes_idle_connections() {
    let (backend, run_counts) = closing_backend();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {retryConstraint: {minRetryRate: {count: 10000}}}\n",
    ));
    // The sidecar learns from a few requests that may be lost without harm that this app closes early.
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
        crate::support::simulate_delay(Duration::from_micros(number * 61 % 4_000));
    }
    let run_counts = run_counts.lock().unwrap();
    for number in 0..500 {
        assert_eq!(
            run_counts.get(&format!("payment {number}")),
            Some(&1),
            "payment {number}"
        );
    }
}

#[test]
fn every_get_succeeds_while_the_app_closes_idle_connections() {
    let (backend, _) = closing_backend();
    let retry = "  defaults: {retry: {attempts: 2, retryOn: [connect-failure, reset-before-request, reset], codes: []}, retryConstraint: {minRetryRate: {count: 10000}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], retry));
    let mut client = sidecar.client();
    for number in 0..500 {
        assert_eq!(client.get("/").status, 200, "request {number}");
        crate::support::simulate_delay(Duration::from_micros(number * 61 % 4_000));
    }
}

/// Half an hour of this, at an app's usual idle time: `make soak`.
#[test]
fn posts_around_the_idle_timeout_of_the_app_run_exactly_once() {
    let run_counts = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let shared_run_counts = run_counts.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.close_when_idle_for(Duration::from_millis(50));
        while let Some(request) = connection.read_request() {
            *shared_run_counts
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
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
                // Around the moment of the close, and far from it.
                let micros = [
                    48_000 + number * 97 % 4_000,
                    50_000,
                    number * 1_370 % 60_000,
                ][usize::try_from(number % 3).unwrap()];
                crate::support::simulate_delay(Duration::from_micros(micros));
            }
        })
    });
    clients
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let run_counts = run_counts.lock().unwrap();
    assert_eq!(run_counts.len(), 600);
    assert!(
        run_counts.values().all(|times| *times == 1),
        "each ran once"
    );
}

/// What an app announces is believed before it has to be learned.
#[test]
fn a_connection_is_not_reused_near_its_announced_keep_alive_timeout() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..5 {
        client.post("/", "x");
        crate::support::simulate_delay(Duration::from_millis(2));
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

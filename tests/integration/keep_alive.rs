//! The keep-alive race: an app that closes idle connections while requests are on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{Backend, Sidecar, backend::ok, sidecar::policy};

/// An app that closes each connection some time after its answer, at ever other moments.
fn closing() -> (Backend, Arc<Mutex<HashMap<String, usize>>>) {
    let ran = Arc::new(Mutex::new(HashMap::new()));
    let there = ran.clone();
    let moment = AtomicUsize::new(0);
    let backend = Backend::start(move |mut connection| {
        let answers = 1 + connection.number % 3;
        for _ in 0..answers {
            let Some(request) = connection.request() else {
                return;
            };
            *there
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok("done"));
        }
        // Not waiting for anything, only for a moment that no one can foresee.
        let micros = moment.fetch_add(1, Ordering::SeqCst) as u64 * 137 % 3_000;
        crate::support::take(Duration::from_micros(micros));
    });
    (backend, ran)
}

#[test]
fn every_post_reaches_the_app_exactly_once_while_connections_are_closed_under_it() {
    let (backend, ran) = closing();
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
        let answer = client.post("/", &format!("payment {number}"));
        assert_eq!(answer.status, 200, "payment {number}: {}", answer.reason());
        crate::support::take(Duration::from_micros(number * 61 % 4_000));
    }
    let ran = ran.lock().unwrap();
    for number in 0..500 {
        assert_eq!(
            ran.get(&format!("payment {number}")),
            Some(&1),
            "payment {number}"
        );
    }
}

#[test]
fn gets_do_not_see_connections_that_are_closed_under_them() {
    let (backend, _) = closing();
    let retry = "  defaults: {retry: {attempts: 2, retryOn: [connect-failure, reset-before-request, reset], codes: []}, retryConstraint: {minRetryRate: {count: 10000}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], retry));
    let mut client = sidecar.client();
    for number in 0..500 {
        assert_eq!(client.get("/").status, 200, "request {number}");
        crate::support::take(Duration::from_micros(number * 61 % 4_000));
    }
}

/// Half an hour of this, at an app's usual idle time: `make soak`.
#[test]
fn idle_closes_at_mixed_gaps_lose_no_post() {
    let ran = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let there = ran.clone();
    let backend = Backend::start(move |mut connection| {
        connection.close_when_idle_for(Duration::from_millis(50));
        while let Some(request) = connection.request() {
            *there
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok("done"));
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
                crate::support::take(Duration::from_micros(micros));
            }
        })
    });
    clients
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let ran = ran.lock().unwrap();
    assert_eq!(ran.len(), 600);
    assert!(ran.values().all(|times| *times == 1), "each ran once");
}

/// What an app announces is believed before it has to be learned.
#[test]
fn an_announced_keep_alive_time_is_kept_clear_of() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..5 {
        client.post("/", "x");
        crate::support::take(Duration::from_millis(2));
    }
    assert_eq!(backend.connections(), 5);
}

#[test]
fn a_connection_that_sent_something_unasked_is_not_used_again() {
    let backend = Backend::start(|mut connection| {
        while connection.request().is_some() {
            connection.send(format!(
                "{}HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n",
                ok("done")
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

//! Replacing the running program without refusing a connection.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use outrigger::{app::StartError, state::lifecycle::End};

use crate::support::{
    Backend, Client, Directory, Sidecar, eventually, process::Supervised, sidecar::policy,
};

const QUICK: &str = "  lifecycle: {drain: {delay: 10s, quietPeriod: 50ms, timeout: 20s}}\n";

fn start(policy: &str, path: &Path) -> Result<Sidecar, StartError> {
    let directory = Directory::new();
    directory.write("policy.yaml", policy);
    Sidecar::start_in(directory, |settings| {
        settings.handover = Some(path.to_owned())
    })
}

/// Clients that ask all the time until they are told to stop: each request on a connection of its own, and others on one as long as it lasts.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (is_over, answered) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let clients = (0..4).map(|number| {
            let (is_over, answered) = (is_over.clone(), answered.clone());
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !is_over.load(Ordering::Relaxed) {
                    let answer = client.get("/");
                    assert_eq!(answer.status, 200, "client {number}: {}", answer.reason());
                    assert_eq!(
                        answer.header("x-outrigger-draining"),
                        None,
                        "the address does not go away"
                    );
                    answered.fetch_add(1, Ordering::Relaxed);
                    if number % 2 == 0 || answer.header("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                }
            })
        });
        let clients = clients.collect();
        Self {
            is_over,
            answered,
            clients,
        }
    }

    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("the load goes on", || {
            self.answered.load(Ordering::Relaxed) > before + 50
        });
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
    }
}

#[test]
fn a_new_process_takes_the_sockets_over_and_no_request_fails() {
    let backend = Backend::healthy();
    let place = Directory::new();
    let path = place.path().join("handover.sock");
    let policy = policy(&[backend.address], QUICK);
    let mut running = start(&policy, &path).unwrap();
    let (address, admin) = (running.address("inbound"), running.app().admin_address());
    eventually("it waits for a successor", || path.exists());
    let load = Load::on(address);
    for _ in 0..3 {
        load.goes_on();
        let next = start(&policy, &path).unwrap();
        assert_eq!(
            (next.address("inbound"), next.app().admin_address()),
            (address, admin)
        );
        let mut old = std::mem::replace(&mut running, next);
        assert_eq!(
            old.app.take().unwrap().wait(),
            End::Drained { is_clean: true },
            "well before the delay of a drain"
        );
        load.goes_on();
        eventually("the successor waits for the next", || path.exists());
    }
    load.end();
    assert_eq!(running.admin("GET", "/readyz").status, 200);
}

#[test]
fn a_successor_serves_only_once_it_is_ready_and_is_no_newer_than_the_one_before() {
    let (backend, is_broken) = Backend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let place = Directory::new();
    let (path, file) = (
        place.path().join("handover.sock"),
        place.path().join("endpoints.json"),
    );
    place.write("endpoints.json", &format!("[\"{}\"]", backend.address));
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let text = policy(
        &[],
        &QUICK.replace(
            "{drain",
            "{startup: {requireBackend: app}, warmUp: {window: 10h}, drain",
        ),
    )
    .replace(
        "endpoints: []",
        &format!("endpointsFile: \"{}\", {check}", file.display()),
    );
    let mut running = start(&text, &path).unwrap();
    eventually("it is ready and waits for a successor", || {
        running.admin("GET", "/readyz").status == 200 && path.exists()
    });
    let introduction = running
        .get("/")
        .header("x-outrigger-started-at")
        .unwrap()
        .to_owned();
    let load = Load::on(running.address("inbound"));
    load.goes_on();
    let next = start(&text, &path).unwrap();
    assert_eq!(
        running.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    load.goes_on();
    let started = |introduction: &str| {
        introduction
            .split(';')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let after = next
        .get("/")
        .header("x-outrigger-started-at")
        .unwrap()
        .to_owned();
    assert!(
        (started(&after) - started(&introduction)).abs() < 1.0,
        "{introduction}, then {after}"
    );
    let slow_to_start = text.replace(
        "requireBackend: app",
        "requireBackend: app, delay: 1h, successThreshold: 1000",
    );
    let third = start(&slow_to_start, &path).unwrap();
    eventually(
        "an app that was called already is not waited for as for a new one",
        || third.app().state().lifecycle.is_ready(),
    );
    let mut next = next;
    assert_eq!(
        next.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    let next = third;
    load.end();
    eventually("the successor waits for the next", || path.exists());
    is_broken.store(true, Ordering::SeqCst);
    let unready = start(&text, &path).unwrap();
    assert!(
        next.get("/").status >= 500,
        "it is still the one who answers"
    );
    assert!(
        !unready.app().state().lifecycle.is_ready(),
        "who is not ready takes nothing over"
    );
    assert!(!next.app().state().departure.is_draining());
}

#[test]
fn a_process_with_other_listeners_takes_nothing_over() {
    let backend = Backend::healthy();
    let place = Directory::new();
    let path = place.path().join("handover.sock");
    let text = policy(&[backend.address], QUICK);
    let running = start(&text, &path).unwrap();
    eventually("it waits for a successor", || path.exists());
    let Err(StartError::Bind(why)) = start(&text.replace("inbound", "another"), &path) else {
        panic!("it started")
    };
    assert!(why.contains("none of the policies' listeners"), "{why}");
    assert_eq!(running.get("/").status, 200);
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let backend = Backend::healthy();
    let place = Directory::new();
    let path = place.path().join("handover.sock");
    let running = start(&policy(&[backend.address], QUICK), &path).unwrap();
    eventually("it waits for a successor", || path.exists());
    let load = Load::on(running.address("inbound"));
    let Err(StartError::Policy(_)) = start("nonsense: 1\n", &path) else {
        panic!("it started")
    };
    load.goes_on();
    let next = start(&policy(&[backend.address], QUICK), &path).unwrap();
    assert_eq!(
        next.address("inbound"),
        running.address("inbound"),
        "the path is still served"
    );
    eventually("the old one is relieved", || {
        running.app().state().departure.is_relieved()
    });
    load.goes_on();
    load.end();
}

#[test]
fn what_is_in_flight_is_finished_by_the_process_that_began_it() {
    let (backend, gate) = Backend::gated();
    let place = Directory::new();
    let path = place.path().join("handover.sock");
    let policy = policy(&[backend.address], QUICK);
    let mut running = start(&policy, &path).unwrap();
    let mut slow = running.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    eventually("it waits for a successor", || path.exists());
    let next = start(&policy, &path).unwrap();
    eventually("the old one is relieved", || {
        running.app().state().departure.is_relieved()
    });
    gate.open();
    let last = slow.answer();
    assert_eq!(
        (last.text().as_str(), last.header("connection")),
        ("done", Some("close"))
    );
    assert_eq!(
        running.app.take().unwrap().wait(),
        End::Drained { is_clean: true }
    );
    assert_eq!(next.get("/").status, 200);
}

#[test]
fn sockets_that_a_supervisor_holds_outlive_the_process() {
    let backend = Backend::healthy();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let directory = Directory::new();
    directory.write(
        "policy.yaml",
        &policy(&[backend.address], QUICK).replace("127.0.0.1:0", &address.to_string()),
    );
    let running = Supervised::start(&directory, &held);
    let load = Load::on(address);
    load.goes_on();
    // As a restart does: the old one ends, then the new one starts. What comes in between waits.
    running.end();
    let running = Supervised::start(&directory, &held);
    load.goes_on();
    load.end();
    running.end();
}

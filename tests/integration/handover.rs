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

use outrigger::{app::StartError, state::instance::lifecycle::ExitReason};

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory, eventually, policy::policy,
    process::SocketActivatedProcess,
};

const LIFECYCLE_SECTION: &str =
    "  lifecycle: {drain: {delay: 10s, quietPeriod: 50ms, timeout: 20s}}\n";

fn start_with_handover(policy: &str, path: &Path) -> Result<Sidecar, StartError> {
    let directory = TempDirectory::new();
    directory.write("policy.yaml", policy);
    Sidecar::start_with_settings(directory, |settings| {
        settings.handover_path = Some(path.to_owned())
    })
}

/// Clients that ask all the time until they are told to stop: each request on a connection of its own, and others on one as long as it lasts.
struct ContinuousLoad {
    is_stopped: Arc<AtomicBool>,
    response_count: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl ContinuousLoad {
    fn start(address: SocketAddr) -> Self {
        let (is_stopped, response_count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let clients = (0..4).map(|number| {
            let (is_stopped, response_count) = (is_stopped.clone(), response_count.clone());
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !is_stopped.load(Ordering::Relaxed) {
                    let response = client.get("/");
                    assert_eq!(
                        response.status,
                        200,
                        "client {number}: {}",
                        response.reason()
                    );
                    assert_eq!(
                        response.header("x-outrigger-draining"),
                        None,
                        "the address does not go away"
                    );
                    response_count.fetch_add(1, Ordering::Relaxed);
                    if number % 2 == 0 || response.header("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                }
            })
        });
        let clients = clients.collect();
        Self {
            is_stopped,
            response_count,
            clients,
        }
    }

    fn wait_for_progress(&self) {
        let before = self.response_count.load(Ordering::Relaxed);
        eventually("the load goes on", || {
            self.response_count.load(Ordering::Relaxed) > before + 50
        });
    }

    fn stop(self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
    }
}

#[test]
fn a_new_process_takes_the_sockets_over_and_no_request_fails() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let policy = policy(&[backend.address], LIFECYCLE_SECTION);
    let mut running = start_with_handover(&policy, &path).unwrap();
    let (address, admin) = (running.address("inbound"), running.app().admin_address());
    eventually("it waits for a successor", || path.exists());
    let load = ContinuousLoad::start(address);
    for _ in 0..3 {
        load.wait_for_progress();
        let next = start_with_handover(&policy, &path).unwrap();
        assert_eq!(
            (next.address("inbound"), next.app().admin_address()),
            (address, admin)
        );
        let mut old = std::mem::replace(&mut running, next);
        assert_eq!(
            old.app.take().unwrap().wait(),
            ExitReason::Drained { is_clean: true },
            "well before the delay of a drain"
        );
        load.wait_for_progress();
        eventually("the successor waits for the next", || path.exists());
    }
    load.stop();
    assert_eq!(running.call_admin("GET", "/readyz").status, 200);
}

#[test]
fn a_successor_takes_over_only_when_ready_and_inherits_the_start_time() {
    let (backend, is_broken) = ScriptedBackend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let socket_directory = TempDirectory::new();
    let (path, file) = (
        socket_directory.path().join("handover.sock"),
        socket_directory.path().join("endpoints.json"),
    );
    socket_directory.write("endpoints.json", &format!("[\"{}\"]", backend.address));
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let text = policy(
        &[],
        &LIFECYCLE_SECTION.replace(
            "{drain",
            "{startup: {requireBackend: app}, warmUp: {window: 10h}, drain",
        ),
    )
    .replace(
        "endpoints: []",
        &format!("endpointsFile: \"{}\", {check}", file.display()),
    );
    let mut running = start_with_handover(&text, &path).unwrap();
    eventually("it is ready and waits for a successor", || {
        running.call_admin("GET", "/readyz").status == 200 && path.exists()
    });
    let started_at_header = running
        .get("/")
        .header("x-outrigger-started-at")
        .unwrap()
        .to_owned();
    let load = ContinuousLoad::start(running.address("inbound"));
    load.wait_for_progress();
    let next = start_with_handover(&text, &path).unwrap();
    assert_eq!(
        running.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    load.wait_for_progress();
    let started = |started_at_header: &str| {
        started_at_header
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
        (started(&after) - started(&started_at_header)).abs() < 1.0,
        "{started_at_header}, then {after}"
    );
    let slow_to_start = text.replace(
        "requireBackend: app",
        "requireBackend: app, delay: 1h, successThreshold: 1000",
    );
    let third = start_with_handover(&slow_to_start, &path).unwrap();
    eventually(
        "an app that was called already is not waited for as for a new one",
        || third.app().state().lifecycle.is_ready(),
    );
    let mut next = next;
    assert_eq!(
        next.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    let next = third;
    load.stop();
    eventually("the successor waits for the next", || path.exists());
    is_broken.store(true, Ordering::SeqCst);
    let unready = start_with_handover(&text, &path).unwrap();
    assert!(
        next.get("/").status >= 500,
        "it is still the one who answers"
    );
    assert!(
        !unready.app().state().lifecycle.is_ready(),
        "who is not ready takes nothing over"
    );
    assert!(!next.app().state().drain.is_draining());
}

#[test]
fn a_successor_with_other_listeners_takes_nothing_over() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let text = policy(&[backend.address], LIFECYCLE_SECTION);
    let running = start_with_handover(&text, &path).unwrap();
    eventually("it waits for a successor", || path.exists());
    let Err(StartError::Bind(why)) =
        start_with_handover(&text.replace("inbound", "another"), &path)
    else {
        panic!("it started")
    };
    assert!(why.contains("none of the policies' listeners"), "{why}");
    assert_eq!(running.get("/").status, 200);
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let running =
        start_with_handover(&policy(&[backend.address], LIFECYCLE_SECTION), &path).unwrap();
    eventually("it waits for a successor", || path.exists());
    let load = ContinuousLoad::start(running.address("inbound"));
    let Err(StartError::Policy(_)) = start_with_handover("nonsense: 1\n", &path) else {
        panic!("it started")
    };
    load.wait_for_progress();
    let next = start_with_handover(&policy(&[backend.address], LIFECYCLE_SECTION), &path).unwrap();
    assert_eq!(
        next.address("inbound"),
        running.address("inbound"),
        "the path is still served"
    );
    eventually("the old one is relieved", || {
        running.app().state().drain.is_handed_over()
    });
    load.wait_for_progress();
    load.stop();
}

#[test]
fn requests_in_flight_complete_in_the_old_process() {
    let (backend, gate) = ScriptedBackend::gated();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let policy = policy(&[backend.address], LIFECYCLE_SECTION);
    let mut running = start_with_handover(&policy, &path).unwrap();
    let mut slow = running.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.requests().len() == 1);
    eventually("it waits for a successor", || path.exists());
    let next = start_with_handover(&policy, &path).unwrap();
    eventually("the old one is relieved", || {
        running.app().state().drain.is_handed_over()
    });
    gate.release_one();
    let last = slow.read_response();
    assert_eq!(
        (last.text().as_str(), last.header("connection")),
        ("done", Some("close"))
    );
    assert_eq!(
        running.app.take().unwrap().wait(),
        ExitReason::Drained { is_clean: true }
    );
    assert_eq!(next.get("/").status, 200);
}

#[test]
fn sockets_passed_by_a_supervisor_survive_a_restart() {
    let backend = ScriptedBackend::healthy();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        &policy(&[backend.address], LIFECYCLE_SECTION).replace("127.0.0.1:0", &address.to_string()),
    );
    let running = SocketActivatedProcess::start(&directory, &listener);
    let load = ContinuousLoad::start(address);
    load.wait_for_progress();
    // As a restart does: the old one ends, then the new one starts. What comes in between waits.
    running.terminate();
    let running = SocketActivatedProcess::start(&directory, &listener);
    load.wait_for_progress();
    load.stop();
    running.terminate();
}

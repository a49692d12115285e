//! Handover of the sockets to a new process, without a refused connection.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use outrigger::{app::StartError, state::instance::lifecycle::ExitReason};

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory, eventually,
    policy::{PolicyBuilder, policy},
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

fn wait_for_exit(sidecar: &mut Sidecar) -> ExitReason {
    sidecar.app.take().unwrap().wait()
}

/// Waits until the running process accepts a successor.
fn wait_for_handover_socket(path: &Path) {
    eventually("the handover socket exists", || path.exists());
}

/// Clients that send requests until they are stopped. Half of them use a new connection for each
/// request, and the others keep their connection.
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
                        "the address stays in service"
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
        eventually("the load continues", || {
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
fn a_handover_to_a_new_process_fails_no_request() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let policy = policy(&[backend.address], LIFECYCLE_SECTION);
    let mut running = start_with_handover(&policy, &path).unwrap();
    let (address, admin) = (running.address("inbound"), running.app().admin_address());
    wait_for_handover_socket(&path);
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
            wait_for_exit(&mut old),
            ExitReason::Drained { is_clean: true }
        );
        load.wait_for_progress();
        wait_for_handover_socket(&path);
    }
    load.stop();
    assert_eq!(running.call_admin("GET", "/readyz").status, 200);
}

/// A directory with the handover socket and the endpoints file of an app.
struct HandoverFiles {
    directory: TempDirectory,
    socket: PathBuf,
}

impl HandoverFiles {
    fn new(app: &ScriptedBackend) -> Self {
        let directory = TempDirectory::new();
        directory.write("endpoints.json", &format!("[\"{}\"]", app.address));
        let socket = directory.path().join("handover.sock");
        Self { directory, socket }
    }

    /// Returns a policy that requires the app at startup. `startup_fields` starts with a comma if
    /// it is not empty.
    fn policy(&self, startup_fields: &str) -> String {
        PolicyBuilder::new(&[])
            .backend_fields(format!(
                "endpointsFile: \"{}\"",
                self.directory.path().join("endpoints.json").display()
            ))
            .backend_fields(
                "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, \
                 http: {path: /healthz}}}",
            )
            .sections(&format!(
                "  lifecycle: {{startup: {{requireBackend: app{startup_fields}}}, \
                 warmUp: {{window: 10h}}, \
                 drain: {{delay: 10s, quietPeriod: 50ms, timeout: 20s}}}}\n"
            ))
            .build()
    }

    /// Starts a process, and waits until it is ready and accepts a successor.
    fn start_first_process(&self) -> Sidecar {
        let sidecar = start_with_handover(&self.policy(""), &self.socket).unwrap();
        eventually("the process is ready and accepts a successor", || {
            sidecar.call_admin("GET", "/readyz").status == 200 && self.socket.exists()
        });
        sidecar
    }
}

/// Returns the start time of the instance in seconds, as its responses state it.
fn start_time(sidecar: &Sidecar) -> f64 {
    let response = sidecar.get("/");
    let header = response.header("x-outrigger-started-at").unwrap();
    header.split(';').next().unwrap().parse().unwrap()
}

#[test]
fn a_successor_inherits_the_start_time_and_the_startup_of_the_app() {
    let (app, is_broken) = ScriptedBackend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let files = HandoverFiles::new(&app);
    let mut first = files.start_first_process();
    let first_start_time = start_time(&first);
    let load = ContinuousLoad::start(first.address("inbound"));
    load.wait_for_progress();
    let mut second = start_with_handover(&files.policy(""), &files.socket).unwrap();
    assert_eq!(
        wait_for_exit(&mut first),
        ExitReason::Drained { is_clean: true }
    );
    load.wait_for_progress();
    let second_start_time = start_time(&second);
    assert!(
        (second_start_time - first_start_time).abs() < 1.0,
        "{first_start_time}, then {second_start_time}"
    );
    let slow_startup = files.policy(", delay: 1h, successThreshold: 1000");
    let third = start_with_handover(&slow_startup, &files.socket).unwrap();
    eventually("the startup of a running app is not awaited again", || {
        third.app().state().lifecycle.is_ready()
    });
    assert_eq!(
        wait_for_exit(&mut second),
        ExitReason::Drained { is_clean: true }
    );
    load.stop();
    wait_for_handover_socket(&files.socket);
}

#[test]
fn a_successor_that_is_not_ready_takes_nothing_over() {
    let (app, is_broken) = ScriptedBackend::switchable();
    is_broken.store(false, Ordering::SeqCst);
    let files = HandoverFiles::new(&app);
    let running = files.start_first_process();
    is_broken.store(true, Ordering::SeqCst);
    let successor = start_with_handover(&files.policy(""), &files.socket).unwrap();
    eventually("the successor has checked the app", || {
        successor
            .events()
            .iter()
            .any(|event| event.contains("of app is unhealthy"))
    });
    assert!(!successor.app().state().lifecycle.is_ready());
    let drain = &running.app().state().drain;
    assert!(!drain.is_handed_over() && !drain.is_draining());
    assert!(running.get("/").status >= 500);
    assert_eq!(
        running.access_log_lines(1).len(),
        1,
        "the running process serves requests"
    );
}

#[test]
fn a_successor_with_other_listeners_takes_nothing_over() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let policy = PolicyBuilder::to_backend(&backend).sections(LIFECYCLE_SECTION);
    let running = start_with_handover(&policy.build(), &path).unwrap();
    wait_for_handover_socket(&path);
    let renamed = policy.listener_name("another").build();
    let Err(StartError::Bind(error)) = start_with_handover(&renamed, &path) else {
        panic!("the successor started")
    };
    assert!(error.contains("none of the policies' listeners"), "{error}");
    assert_eq!(running.get("/").status, 200);
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let backend = ScriptedBackend::healthy();
    let socket_directory = TempDirectory::new();
    let path = socket_directory.path().join("handover.sock");
    let running =
        start_with_handover(&policy(&[backend.address], LIFECYCLE_SECTION), &path).unwrap();
    wait_for_handover_socket(&path);
    let load = ContinuousLoad::start(running.address("inbound"));
    let Err(StartError::Policy(_)) = start_with_handover("nonsense: 1\n", &path) else {
        panic!("the successor started")
    };
    load.wait_for_progress();
    let next = start_with_handover(&policy(&[backend.address], LIFECYCLE_SECTION), &path).unwrap();
    assert_eq!(
        next.address("inbound"),
        running.address("inbound"),
        "a valid successor takes the sockets over"
    );
    eventually("the old process is handed over", || {
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
    eventually("the backend receives the request", || {
        backend.requests().len() == 1
    });
    wait_for_handover_socket(&path);
    let next = start_with_handover(&policy, &path).unwrap();
    eventually("the old process is handed over", || {
        running.app().state().drain.is_handed_over()
    });
    gate.release_one();
    let response = slow.read_response();
    assert_eq!(
        (response.text().as_str(), response.header("connection")),
        ("done", Some("close"))
    );
    assert_eq!(
        wait_for_exit(&mut running),
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
    let policy = PolicyBuilder::to_backend(&backend)
        .listener_address(address)
        .sections(LIFECYCLE_SECTION)
        .build();
    directory.write("policy.yaml", &policy);
    let running = SocketActivatedProcess::start(&directory, &listener);
    let load = ContinuousLoad::start(address);
    load.wait_for_progress();
    // A restart ends the old process first. New connections wait in the socket for the next one.
    running.terminate();
    let running = SocketActivatedProcess::start(&directory, &listener);
    load.wait_for_progress();
    load.stop();
    running.terminate();
}

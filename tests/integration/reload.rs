//! Policy changes while the sidecar runs.

use std::{
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use outrigger::app::StartError;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
};

const INVALID_POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\n\
                              metadata: {name: test}\nspec:\n  rowts: []\n";

/// Fields of an inbound listener on a port that the system chooses.
const ANY_PORT: &str = "direction: Inbound, address: \"127.0.0.1:0\"";

/// Returns defaults with a circuit breaker, a rate limit and a connection limit.
fn limit_sections(limit: u32) -> String {
    format!(
        "  defaults:\n    circuitBreaker: {{consecutiveFailures: {limit}}}\n    \
         rateLimit: {{local: {{rules: [{{name: spent, \
         clientSelectors: [{{headers: [{{name: x-key, type: Distinct}}]}}], \
         limit: {{requests: 1, unit: Hour, burst: 3}}}}]}}}}\n    \
         connectionLimits: {{maxParallelRequests: {limit}}}\n"
    )
}

/// Clients that send requests until they are stopped. Every response must have status 200.
struct Load {
    is_stopped: Arc<AtomicBool>,
    responses: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let responses = Arc::new(AtomicUsize::new(0));
        let clients = (0..4)
            .map(|_| {
                let (is_stopped, responses) = (is_stopped.clone(), responses.clone());
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    while !is_stopped.load(Ordering::SeqCst) {
                        let response = client.get("/");
                        assert_eq!(
                            (response.status, response.text().as_str()),
                            (200, "hello"),
                            "{}",
                            response.reason()
                        );
                        responses.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Self {
            is_stopped,
            responses,
            clients,
        }
    }

    fn wait_for_next_response(&self) {
        let before = self.responses.load(Ordering::SeqCst);
        eventually("the load continues", || {
            self.responses.load(Ordering::SeqCst) > before
        });
    }

    fn stop(self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
    }
}

/// Sends a request that the rate limit `spent` counts.
fn send_with_key(client: &mut Client) -> u16 {
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nx-key: spender\r\n\r\n")
        .read_response()
        .status
}

/// Of 200 reloads, 50 have an invalid policy.
#[test]
fn reloads_under_load_fail_no_request_and_retain_the_state() {
    let backend = ScriptedBackend::healthy();
    let policy_with_limits = |limit| policy(&[backend.address], &limit_sections(limit));
    let sidecar = Sidecar::start(&policy_with_limits(100));
    let mut client = sidecar.client();
    assert_eq!(
        [(); 4].map(|()| send_with_key(&mut client)),
        [200, 200, 200, 429]
    );
    sidecar.call_admin("POST", "/api/v1/breakers/app/force-open");
    assert_eq!(client.get("/").reason(), "breaker_open:app");
    sidecar.reload(&policy_with_limits(101));
    assert_eq!(
        client.get("/").reason(),
        "breaker_open:app",
        "a reload retains the forced state"
    );
    sidecar.call_admin("POST", "/api/v1/breakers/app/auto");

    let address = sidecar.address("inbound");
    let load = Load::start(address);
    let mut rejected_reloads = 0;
    for round in 0..200_u32 {
        let result = if round % 4 == 3 {
            sidecar.reload(INVALID_POLICY)
        } else {
            sidecar.reload(&policy_with_limits(200 + round))
        };
        rejected_reloads += u32::from(result.status == 422);
        load.wait_for_next_response();
    }
    load.stop();
    assert_eq!(rejected_reloads, 50);
    assert_eq!(
        send_with_key(&mut client),
        429,
        "reloads do not refill the bucket"
    );
    // The file watch may also read and reject an invalid file.
    assert!(sidecar.metric(r#"outrigger_policy_reloads_total{result="refused"}"#) >= 50.0);
    assert_eq!(
        sidecar.address("inbound"),
        address,
        "the listener keeps its socket"
    );
}

#[test]
fn an_invalid_policy_set_changes_nothing_and_is_reported_everywhere() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let before = sidecar.admin_json("/api/v1/status");
    let rejection = sidecar.reload(INVALID_POLICY);
    assert_eq!(rejection.status, 422);
    assert!(
        rejection
            .text()
            .contains("policy.yaml:5:3: unknown key `rowts`"),
        "{}",
        rejection.text()
    );
    let after = sidecar.admin_json("/api/v1/status");
    assert_eq!(
        (&after["policy"]["generation"], &after["policy"]["hash"]),
        (&before["policy"]["generation"], &before["policy"]["hash"])
    );
    assert_eq!(after["policy"]["last_result"], "refused");
    assert!(
        after["policy"]["faults"][0]
            .as_str()
            .unwrap()
            .contains("rowts")
    );
    assert_eq!(
        (
            sidecar.metric("outrigger_policy_current"),
            sidecar.metric(r#"outrigger_policy_reloads_total{result="refused"}"#)
        ),
        (0.0, 1.0)
    );
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("invalid policies") && event.contains("rowts"))
    );
    let ready = sidecar.call_admin("GET", "/readyz?verbose");
    assert!(
        ready.status == 200 && ready.text().contains("[!] policy-current"),
        "{}",
        ready.text()
    );
    assert_eq!(sidecar.get("/").status, 200);
    sidecar.reload(&policy(
        &[backend.address],
        "  defaults: {timeouts: {request: 9s}}\n",
    ));
    assert_eq!(sidecar.metric("outrigger_policy_current"), 1.0);
}

#[test]
fn a_changed_file_is_applied_and_its_changes_are_logged() {
    let (backend, other) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("other")),
    );
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    sidecar
        .directory
        .write("policy.yaml", &policy(&[other.address], ""));
    eventually("requests are sent to the new endpoint", || {
        sidecar.get("/").text() == "other"
    });
    let changes = [
        format!(
            "backend app: endpoint {} removed; its requests in flight finish",
            backend.address
        ),
        format!("backend app: endpoint {} added", other.address),
    ];
    // A policy set is in force shortly before its changes are logged.
    eventually("the changes are logged", || {
        changes
            .iter()
            .all(|change| sidecar.events().iter().any(|event| event.contains(change)))
    });
}

/// Updates a directory as Kubernetes updates a mounted ConfigMap: it replaces a link.
fn swap_config_map(directory: &Path, version: &str, text: &str) {
    std::fs::create_dir(directory.join(version)).unwrap();
    std::fs::write(directory.join(version).join("policy.yaml"), text).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

#[test]
fn a_swapped_config_map_is_applied() {
    let (backend, other) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("other")),
    );
    for uses_file_events in [true, false] {
        let directory = TempDirectory::new();
        swap_config_map(
            directory.path(),
            "..2026_1",
            &policy(&[backend.address], ""),
        );
        symlink("..data/policy.yaml", directory.path().join("policy.yaml")).unwrap();
        // The first case depends on file events, because it polls once an hour.
        let sidecar = Sidecar::start_with_settings(directory, |settings| {
            settings.poll_interval =
                std::time::Duration::from_millis(if uses_file_events { 3_600_000 } else { 20 });
        })
        .unwrap();
        assert_eq!(sidecar.get("/").text(), "hello");
        swap_config_map(
            sidecar.directory.path(),
            "..2026_2",
            &policy(&[other.address], ""),
        );
        eventually("the new policy is in force", || {
            sidecar.get("/").text() == "other"
        });
    }
}

#[test]
fn a_request_sees_one_policy_to_its_end() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let backend = ScriptedBackend::start(move |mut connection| {
        connection.read_request();
        backend_gate.wait_for_release();
        connection.send(ok_response("old"));
    });
    let other = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the backend receives the request", || {
        backend.requests().len() == 1
    });
    sidecar.reload(&policy(&[other.address], ""));
    assert_eq!(sidecar.get("/").text(), "hello");
    gate.release_one();
    assert_eq!(
        client.read_response().text(),
        "old",
        "a request in flight is completed although its endpoint was removed"
    );
}

#[test]
fn listeners_are_added_removed_and_changed_without_a_restart() {
    let backend = ScriptedBackend::healthy();
    let policy_with_listener = |name: &str| PolicyBuilder::to_backend(&backend).listener_name(name);
    let sidecar = Sidecar::start(&policy_with_listener("inbound").build());
    let first = sidecar.address("inbound");
    let mut open_connection = sidecar.client();
    assert_eq!(open_connection.get("/").status, 200);
    let added = policy_with_listener("second").routed_listener("inbound", ANY_PORT);
    assert_eq!(sidecar.reload(&added.build()).status, 200);
    let second = sidecar.address("second");
    assert_eq!(Client::connect(second).get("/").status, 200);
    let limited = format!("limits: {{maxBodyBytes: 1}}, {ANY_PORT}");
    let changed = policy_with_listener("second").routed_listener("inbound", &limited);
    sidecar.reload(&changed.build());
    assert_eq!(sidecar.address("inbound"), first);
    assert_eq!(
        open_connection.post("/", "xx").status,
        413,
        "the change applies to an open connection"
    );
    let removed = policy_with_listener("second");
    assert_eq!(sidecar.reload(&removed.build()).status, 200);
    eventually("the removed listener is closed", || {
        std::net::TcpStream::connect(first).is_err()
    });
    assert_eq!(Client::connect(second).get("/").status, 200);
}

#[test]
fn a_listener_that_cannot_be_bound_rejects_the_whole_policy_set() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    let policy = PolicyBuilder::to_backend(&backend)
        .listener(
            "occupied",
            &format!("direction: Inbound, address: \"{address}\""),
        )
        .build();
    let rejection = sidecar.reload(&policy);
    assert!(
        rejection.status == 422
            && rejection
                .text()
                .contains("the listener `occupied` cannot be bound"),
        "{}",
        rejection.text()
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn breaker_state_and_counts_survive_a_reload_and_a_renamed_backend_is_reset() {
    let backend = ScriptedBackend::responding_with(|_| response(500, "no"));
    let breaker = |failures: u32| {
        format!(
            "  defaults: {{circuitBreaker: {{consecutiveFailures: {failures}, \
             waitDurationInOpenState: 1h, maxWaitDurationInOpenState: 1h}}}}\n"
        )
    };
    let sidecar = Sidecar::start(&policy(&[backend.address], &breaker(4)));
    for _ in 0..3 {
        sidecar.get("/");
    }
    sidecar.reload(&policy(&[backend.address], &breaker(5)));
    assert_eq!(
        sidecar.breaker("app")["consecutive_failures"],
        3,
        "the count of consecutive failures is retained"
    );
    for _ in 0..2 {
        sidecar.get("/");
    }
    assert_eq!(sidecar.breaker("app")["state"], "open");
    let reload_report = sidecar
        .reload(&policy(&[backend.address], &breaker(6)))
        .text();
    assert!(
        reload_report.contains("its state and counts are retained"),
        "{reload_report}"
    );
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    let renamed = PolicyBuilder::to_backend(&backend)
        .backend_name("renamed")
        .sections(&breaker(6));
    sidecar.reload(&renamed.build());
    assert_eq!(
        sidecar.get("/").status,
        500,
        "a renamed backend has a new breaker"
    );
}

#[test]
fn a_bucket_with_a_changed_quota_retains_its_fill_ratio() {
    let backend = ScriptedBackend::healthy();
    let rule = |burst: u32| {
        format!(
            "  defaults: {{rateLimit: {{local: {{rules: [{{name: all, \
             limit: {{requests: 1, unit: Hour, burst: {burst}}}}}]}}}}}}\n"
        )
    };
    let sidecar = Sidecar::start(&policy(&[backend.address], &rule(10)));
    let mut client = sidecar.client();
    for _ in 0..5 {
        client.get("/");
    }
    sidecar.reload(&policy(&[backend.address], &rule(100)));
    let admitted = (0..100).filter(|_| client.get("/").status == 200).count();
    assert!(
        (49..=51).contains(&admitted),
        "a half-full bucket stays half full: {admitted} of 100 are admitted"
    );
}

#[test]
fn an_invalid_policy_at_startup_is_rejected_unless_a_last_valid_set_is_stored() {
    let backend = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write("policy.yaml", INVALID_POLICY);
    let Err(StartError::Policy(report)) = Sidecar::start_with_settings(directory, |_| {}) else {
        panic!("the sidecar started with an invalid policy")
    };
    assert!(report.to_human().contains("unknown key `rowts`"));

    let state_directory = TempDirectory::new();
    let state_dir = state_directory.path().join("state");
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &policy(&[backend.address], ""));
    drop(
        Sidecar::start_with_settings(directory, |settings| {
            settings.state_dir = Some(state_dir.clone())
        })
        .unwrap(),
    );
    let directory = TempDirectory::new();
    directory.write("policy.yaml", INVALID_POLICY);
    let sidecar = Sidecar::start_with_settings(directory, |settings| {
        settings.state_dir = Some(state_dir.clone())
    })
    .unwrap();
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(
        sidecar.admin_json("/api/v1/status")["policy"]["last_result"],
        "refused"
    );
    assert_eq!(sidecar.metric("outrigger_policy_current"), 0.0);
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("invalid policies")),
        "the rejected policy is logged"
    );
}

#[test]
fn removing_an_active_check_clears_its_results() {
    let backend = ScriptedBackend::responding_with(|request| {
        if request.request_line().contains("/healthz") {
            response(500, "unhealthy")
        } else {
            ok_response("healthy")
        }
    });
    let checked = PolicyBuilder::to_backend(&backend)
        .backend_fields(
            "healthCheck: {active: {type: HTTP, interval: 10ms, unhealthyThreshold: 1, \
             http: {path: /healthz}}}",
        )
        .build();
    let sidecar = Sidecar::start(&checked);
    eventually("the endpoint is unhealthy", || {
        sidecar.get("/").reason() == "no_healthy_endpoint:app"
    });
    sidecar.reload(&policy(&[backend.address], ""));
    assert_eq!(sidecar.get("/").text(), "healthy");
}

#[test]
fn returning_to_the_active_policy_set_is_logged() {
    let backend = ScriptedBackend::healthy();
    let valid_policy = policy(&[backend.address], "");
    let sidecar = Sidecar::start(&valid_policy);
    sidecar.reload(INVALID_POLICY);
    assert_eq!(sidecar.metric("outrigger_policy_current"), 0.0);
    sidecar.reload(&valid_policy);
    assert_eq!(sidecar.metric("outrigger_policy_current"), 1.0);
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("generation 1 is the newest again"))
    );
}

#[test]
fn an_empty_file_is_rejected_and_closes_no_listener() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    assert_eq!(sidecar.reload("").status, 422);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_renamed_listener_keeps_its_socket_and_its_connections() {
    let backend = ScriptedBackend::healthy();
    let address = ScriptedBackend::unused_address();
    let policy_with_listener = |name: &str| {
        PolicyBuilder::to_backend(&backend)
            .listener_name(name)
            .listener_address(address)
            .build()
    };
    let sidecar = Sidecar::start(&policy_with_listener("inbound"));
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    let renamed = policy_with_listener("front");
    assert_eq!(sidecar.reload(&renamed).status, 200);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(sidecar.access_log_lines(2)[1]["listener"], "front");
}

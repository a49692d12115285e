//! Policies that change while the sidecar runs.

use std::{
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use outrigger::app::StartError;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response, response},
    eventually,
    policy::policy,
};

const INVALID_POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {name: test}\nspec:\n  rowts: []\n";

/// 200 reloads under load, 50 of them invalid: no request fails, and the state is kept.
#[test]
fn reloads_under_load_fail_no_request_and_retain_the_state() {
    let backend = ScriptedBackend::healthy();
    let sections = |requests: u32| {
        format!(
            "  defaults:\n    circuitBreaker: {{consecutiveFailures: {requests}}}\n    rateLimit: {{local: {{rules: [{{name: spent, clientSelectors: [{{headers: [{{name: x-key, type: Distinct}}]}}], limit: {{requests: 1, unit: Hour, burst: 3}}}}]}}}}\n    \
             connectionLimits: {{maxParallelRequests: {requests}}}\n"
        )
    };
    let sidecar = Sidecar::start(&policy(&[backend.address], &sections(100)));
    let mut client = sidecar.client();
    let send_with_key = |client: &mut Client| {
        client
            .send("GET / HTTP/1.1\r\nhost: a\r\nx-key: spender\r\n\r\n")
            .read_response()
            .status
    };
    assert_eq!(
        [(); 4].map(|()| send_with_key(&mut client)),
        [200, 200, 200, 429]
    );
    sidecar.call_admin("POST", "/api/v1/breakers/app/force-open");
    assert_eq!(client.get("/").reason(), "breaker_open:app");
    sidecar.reload(&policy(&[backend.address], &sections(101)));
    assert_eq!(
        client.get("/").reason(),
        "breaker_open:app",
        "a reload does not forget what was forced"
    );
    sidecar.call_admin("POST", "/api/v1/breakers/app/auto");

    let is_stopped = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let address = sidecar.address("inbound");
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (is_stopped, done) = (is_stopped.clone(), done.clone());
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
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut refused = 0;
    for round in 0..200_u32 {
        let result = if round % 4 == 3 {
            sidecar.reload(INVALID_POLICY)
        } else {
            sidecar.reload(&policy(&[backend.address], &sections(200 + round)))
        };
        refused += u32::from(result.status == 422);
        let before = done.load(Ordering::SeqCst);
        eventually("the load goes on", || done.load(Ordering::SeqCst) > before);
    }
    is_stopped.store(true, Ordering::SeqCst);
    callers
        .into_iter()
        .for_each(|caller| caller.join().unwrap());
    assert_eq!(refused, 50);
    assert_eq!(
        send_with_key(&mut client),
        429,
        "the bucket is as empty as before"
    );
    // The watch may have met a file that was half written, and refused that too.
    assert!(sidecar.metric(r#"outrigger_policy_reloads_total{result="refused"}"#) >= 50.0);
    assert_eq!(
        sidecar.address("inbound"),
        address,
        "the listener kept its socket"
    );
}

#[test]
fn an_invalid_policy_set_changes_nothing_and_is_reported_everywhere() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let before = sidecar.admin_json("/api/v1/status");
    let refused = sidecar.reload(INVALID_POLICY);
    assert_eq!(refused.status, 422);
    assert!(
        refused
            .text()
            .contains("policy.yaml:5:3: unknown key `rowts`"),
        "{}",
        refused.text()
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
            .any(|event| event.contains("policy refused") && event.contains("rowts"))
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
    eventually("the new endpoint answers", || {
        sidecar.get("/").text() == "other"
    });
    let words = [
        format!(
            "backend app: endpoint {} removed, its requests run on",
            backend.address
        ),
        format!("backend app: endpoint {} added", other.address),
    ];
    // A set is in force a moment before it is told of.
    eventually("it is told in words", || {
        words
            .iter()
            .all(|words| sidecar.events().iter().any(|event| event.contains(words)))
    });
}

/// A ConfigMap is mounted as a link to a directory that is swapped as a whole.
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
        // Once by the system's notices with a poll that never comes, once by the poll alone.
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
    eventually("it has arrived", || backend.requests().len() == 1);
    sidecar.reload(&policy(&[other.address], ""));
    assert_eq!(sidecar.get("/").text(), "hello");
    gate.release_one();
    assert_eq!(
        client.read_response().text(),
        "old",
        "its endpoint is gone from the policy, and it runs on"
    );
}

#[test]
fn listeners_are_added_removed_and_changed_without_a_restart() {
    let backend = ScriptedBackend::healthy();
    let text = policy(&[backend.address], "");
    let sidecar = Sidecar::start(&text);
    let first = sidecar.address("inbound");
    let mut old = sidecar.client();
    assert_eq!(old.get("/").status, 200);
    let two = text
        .replace("    - {name: inbound,", "    - {name: second, direction: Inbound, address: \"127.0.0.1:0\"}\n    - {name: inbound,")
        .replace("[inbound]", "[inbound, second]");
    assert_eq!(sidecar.reload(&two).status, 200);
    let second = sidecar.address("second");
    assert_eq!(Client::connect(second).get("/").status, 200);
    let limited = two.replace(
        "{name: inbound, direction: Inbound,",
        "{name: inbound, direction: Inbound, limits: {maxBodyBytes: 1}, ",
    );
    sidecar.reload(&limited);
    assert_eq!(sidecar.address("inbound"), first);
    assert_eq!(
        old.post("/", "xx").status,
        413,
        "a connection that is open follows too"
    );
    let only_second =
        limited.replace("    - {name: inbound, direction: Inbound, limits: {maxBodyBytes: 1},  address: \"127.0.0.1:0\"}\n", "").replace("[inbound, second]", "[second]");
    assert_eq!(sidecar.reload(&only_second).status, 200);
    eventually("the first is closed", || {
        std::net::TcpStream::connect(first).is_err()
    });
    assert_eq!(Client::connect(second).get("/").status, 200);
}

#[test]
fn a_listener_that_cannot_be_bound_rejects_the_whole_policy_set() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = policy(&[backend.address], "").replace(
        "    - {name: inbound,",
        &format!(
            "    - {{name: taken, direction: Inbound, address: \"{}\"}}\n    - {{name: inbound,",
            taken.local_addr().unwrap()
        ),
    );
    let refused = sidecar.reload(&text);
    assert!(
        refused.status == 422
            && refused
                .text()
                .contains("the listener `taken` cannot be bound"),
        "{}",
        refused.text()
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn breaker_state_and_counts_survive_a_reload_and_a_renamed_backend_is_reset() {
    let backend = ScriptedBackend::responding_with(|_| response(500, "no"));
    let breaker = |failures: u32| {
        format!(
            "  defaults: {{circuitBreaker: {{consecutiveFailures: {failures}, waitDurationInOpenState: 1h, maxWaitDurationInOpenState: 1h}}}}\n"
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
        "the run goes on"
    );
    for _ in 0..2 {
        sidecar.get("/");
    }
    assert_eq!(sidecar.breaker("app")["state"], "open");
    let reload_report = sidecar
        .reload(&policy(&[backend.address], &breaker(6)))
        .text();
    assert!(
        reload_report.contains("breaker towards app changed, state and counts are kept"),
        "{reload_report}"
    );
    assert_eq!(sidecar.get("/").reason(), "breaker_open:app");
    sidecar.reload(&policy(&[backend.address], &breaker(6)).replace("name: app", "name: renamed"));
    assert_eq!(
        sidecar.get("/").status,
        500,
        "another backend, another breaker"
    );
}

#[test]
fn a_bucket_with_a_changed_quota_retains_its_fill_ratio() {
    let backend = ScriptedBackend::healthy();
    let rule = |burst: u32| {
        format!(
            "  defaults: {{rateLimit: {{local: {{rules: [{{name: all, limit: {{requests: 1, unit: Hour, burst: {burst}}}}}]}}}}}}\n"
        )
    };
    let sidecar = Sidecar::start(&policy(&[backend.address], &rule(10)));
    let mut client = sidecar.client();
    for _ in 0..5 {
        client.get("/");
    }
    sidecar.reload(&policy(&[backend.address], &rule(100)));
    let passed = (0..100).filter(|_| client.get("/").status == 200).count();
    assert!(
        (49..=51).contains(&passed),
        "half of a hundred, as it was half of ten: {passed}"
    );
}

#[test]
fn an_invalid_policy_at_startup_is_rejected_unless_a_last_good_set_is_stored() {
    let backend = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write("policy.yaml", INVALID_POLICY);
    let Err(StartError::Policy(faults)) = Sidecar::start_with_settings(directory, |_| {}) else {
        panic!("started")
    };
    assert!(faults.to_human().contains("unknown key `rowts`"));

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
            .any(|event| event.contains("policy refused")),
        "it says so loudly"
    );
}

#[test]
fn removing_an_active_check_clears_its_results() {
    let backend = ScriptedBackend::responding_with(|request| {
        if request.request_line().contains("/healthz") {
            response(500, "ill")
        } else {
            ok_response("fine")
        }
    });
    let plain = policy(&[backend.address], "");
    let checked = plain.replace("]}\n  routes", "], healthCheck: {active: {type: HTTP, interval: 10ms, unhealthyThreshold: 1, http: {path: /healthz}}}}\n  routes");
    let sidecar = Sidecar::start(&checked);
    eventually("it is known to be ill", || {
        sidecar.get("/").reason() == "no_healthy_endpoint:app"
    });
    sidecar.reload(&plain);
    assert_eq!(sidecar.get("/").text(), "fine");
}

#[test]
fn returning_to_the_active_policy_set_is_logged() {
    let backend = ScriptedBackend::healthy();
    let good = policy(&[backend.address], "");
    let sidecar = Sidecar::start(&good);
    sidecar.reload(INVALID_POLICY);
    assert_eq!(sidecar.metric("outrigger_policy_current"), 0.0);
    sidecar.reload(&good);
    assert_eq!(sidecar.metric("outrigger_policy_current"), 1.0);
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("generation 1 is the newest again"))
    );
}

#[test]
fn an_emptied_file_is_rejected_and_closes_nothing() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    assert_eq!(sidecar.reload("").status, 422);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_renamed_listener_keeps_its_socket_and_its_connections() {
    let backend = ScriptedBackend::healthy();
    let port = ScriptedBackend::unused_address();
    let text = policy(&[backend.address], "").replace("127.0.0.1:0", &port.to_string());
    let sidecar = Sidecar::start(&text);
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(
        sidecar
            .reload(
                &text
                    .replace("name: inbound", "name: front")
                    .replace("[inbound]", "[front]")
            )
            .status,
        200
    );
    assert_eq!(client.get("/").status, 200);
    assert_eq!(sidecar.access_log_lines(2)[1]["listener"], "front");
}

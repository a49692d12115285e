//! Startup and warm-up: readiness, the share of a new instance, and the capacity of its replicas.

use std::sync::atomic::Ordering;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response, response},
    eventually,
    policy::{PolicyBuilder, policy},
    process::SidecarProcess,
};

/// A warm-up that does not progress noticeably during a test.
const LONG_WARM_UP: &str = "warmUp: {window: 10h, minPercent: 20}";

const ACTIVE_CHECK: &str = "healthCheck: {active: {type: HTTP, interval: 20ms, \
                            unhealthyThreshold: 1, http: {path: /healthz}}}";

/// Adds a backend that is checked actively.
fn add_checked_backend(
    policy: PolicyBuilder,
    name: &str,
    backend: &ScriptedBackend,
) -> PolicyBuilder {
    let fields = format!("{ACTIVE_CHECK}, endpoints: [\"{}\"]", backend.address);
    policy.backend(name, &fields)
}

/// Returns a policy of a warming instance that has one replica.
fn policy_with_replica(app: &ScriptedBackend, replica: &ScriptedBackend, warm_up: &str) -> String {
    let policy = PolicyBuilder::to_backend(app).sections(&lifecycle_section(&format!(
        "{warm_up}, replicas: {{backend: replicas}}"
    )));
    add_checked_backend(policy, "replicas", replica).build()
}

fn wait_for_healthy_replica(sidecar: &Sidecar) {
    eventually("the replica is healthy", || {
        sidecar
            .admin_json("/api/v1/backends")
            .to_string()
            .contains("\"health\":\"healthy\"")
    });
}

fn lifecycle_section(fields: &str) -> String {
    format!("  lifecycle: {{{fields}}}\n")
}

/// Sends requests. Returns the number of responses with status 200, and the status and reason of
/// each other response.
fn count_served_and_list_rejected(
    sidecar: &Sidecar,
    count: usize,
    headers: &str,
) -> (usize, Vec<String>) {
    let mut client = sidecar.client();
    let mut rejections = Vec::new();
    for _ in 0..count {
        let response = client
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n"))
            .read_response();
        if response.status != 200 {
            rejections.push(format!("{} {}", response.status, response.reason()));
        }
    }
    (count - rejections.len(), rejections)
}

#[test]
fn readiness_depends_on_another_backend_only_if_it_is_a_readiness_gate() {
    let (app, (dependency, is_broken)) =
        (ScriptedBackend::healthy(), ScriptedBackend::switchable());
    is_broken.store(true, Ordering::SeqCst);
    let policy_with_lifecycle = |sections: &str| {
        let policy = PolicyBuilder::to_backend(&app).sections(sections);
        add_checked_backend(policy, "payments", &dependency).build()
    };
    let sidecar = Sidecar::start(&policy_with_lifecycle(""));
    eventually("the dependency is unhealthy", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("of payments is unhealthy"))
    });
    assert_eq!(
        sidecar.call_admin("GET", "/readyz").status,
        200,
        "an unhealthy dependency does not affect readiness"
    );
    let gated = lifecycle_section("readinessGates: [payments]");
    assert_eq!(sidecar.reload(&policy_with_lifecycle(&gated)).status, 200);
    let report = sidecar.call_admin("GET", "/readyz?verbose");
    assert!(
        report.status == 503 && report.text().contains("[-] backend-available:payments"),
        "{}",
        report.text()
    );
    is_broken.store(false, Ordering::SeqCst);
    eventually("the instance is ready", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
    is_broken.store(true, Ordering::SeqCst);
    eventually("the instance is not ready", || {
        sidecar.call_admin("GET", "/readyz").status == 503
    });
    assert_eq!(sidecar.reload(&policy_with_lifecycle("")).status, 200);
    assert!(
        !sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("payments")
    );
}

#[test]
fn an_instance_is_not_ready_before_the_first_check_of_its_readiness_gate() {
    let (slow, gate) = ScriptedBackend::gated_with("healthy");
    let policy = PolicyBuilder::to_backend(&slow)
        .backend_fields(
            "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 10s, \
             http: {path: /healthz}}}",
        )
        .sections(&lifecycle_section("readinessGates: [app]"))
        .build();
    let sidecar = Sidecar::start(&policy);
    assert_eq!(sidecar.call_admin("GET", "/readyz").status, 503);
    gate.release_one();
    eventually("the instance is ready", || {
        gate.release_one();
        sidecar.call_admin("GET", "/readyz").status == 200
    });
}

#[test]
fn app_probes_are_forwarded_even_while_the_instance_drains() {
    let app = ScriptedBackend::responding_with(|request| {
        match request.request_line().split(' ').nth(1).unwrap() {
            "/healthz" => ok_response("healthy"),
            "/live" => ok_response("alive"),
            _ => response(503, "not yet"),
        }
    });
    let policy = PolicyBuilder::to_backend(&app)
        .backend_fields(
            "healthCheck: {active: {type: HTTP, interval: 20ms, http: {path: /healthz}}}",
        )
        .sections(&lifecycle_section(
            "startup: {requireBackend: app}, appProbes: {livez: /live, startupz: /started}",
        ))
        .build();
    let sidecar = Sidecar::start(&policy);
    let probe = |name: &str| {
        let response = sidecar.call_admin("GET", &format!("/app-health/{name}"));
        (response.status, response.text())
    };
    for _ in 0..2 {
        assert_eq!(probe("livez"), (200, "alive".to_owned()));
        assert_eq!(
            probe("readyz"),
            (200, "healthy".to_owned()),
            "a probe without a path uses the path of the active check"
        );
        assert_eq!(probe("startupz"), (503, "not yet".to_owned()));
        assert_eq!(probe("connect").0, 200);
        assert_eq!(probe("nonsense").0, 404);
        sidecar.call_admin("POST", "/api/v1/drain");
    }
    drop(app);
    for name in ["livez", "connect"] {
        // The last response of the app is cached for a short time.
        eventually("the probe states the error", || {
            let (status, error) = probe(name);
            status == 503 && error.starts_with("the app does not respond: ")
        });
    }
}

#[test]
fn app_probes_return_404_without_a_required_backend() {
    let sidecar = Sidecar::start(&policy(&[ScriptedBackend::healthy().address], ""));
    let response = sidecar.call_admin("GET", "/app-health/livez");
    assert!(
        response.status == 404 && response.text().contains("requireBackend"),
        "{}",
        response.text()
    );
}

#[test]
fn a_calling_sidecar_sends_a_warming_instance_its_share_and_is_not_rejected() {
    for balancer in ["RoundRobin", "Random", "LeastRequest"] {
        let (app, warm) = (
            ScriptedBackend::responding_with(|_| ok_response("cold")),
            ScriptedBackend::responding_with(|_| ok_response("warm")),
        );
        let replica = ScriptedBackend::healthy();
        let cold = Sidecar::start(&policy_with_replica(&app, &replica, LONG_WARM_UP));
        wait_for_healthy_replica(&cold);
        let policy = PolicyBuilder::new(&[cold.address("inbound"), warm.address])
            .backend_fields(format!("loadBalancer: {{type: {balancer}}}"))
            .sections("  defaults: {retry: {mode: Off}}\n")
            .build();
        let caller = Sidecar::start(&policy);
        let mut client = caller.client();
        let names: Vec<String> = (0..1_200).map(|_| client.get("/").text()).collect();
        let share = names.iter().filter(|name| *name == "cold").count();
        // The weights are 0.2 and 1, so 200 of 1200 requests are expected. Round robin may send a
        // tenth more. Random selection may deviate by four standard deviations.
        let share_max = if balancer == "RoundRobin" { 220 } else { 252 };
        assert!(
            (100..=share_max).contains(&share)
                && names.iter().all(|name| name == "cold" || name == "warm"),
            "{balancer}: {share} of 1200"
        );
        assert!(
            cold.metric("outrigger_refusals_total{route=\"in\",reason=\"warming_up\"}") <= 1.0,
            "only the request whose response reports the warm-up may be rejected"
        );
    }
}

#[test]
fn a_warming_instance_admits_only_its_share_from_clients_without_warm_up_support() {
    let (app, replica) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let sidecar = Sidecar::start(&policy_with_replica(&app, &replica, LONG_WARM_UP));
    wait_for_healthy_replica(&sidecar);
    let (served, rejections) = count_served_and_list_rejected(&sidecar, 100, "");
    assert_eq!(
        (served, app.requests().len()),
        (20, 20),
        "exactly 20 percent are admitted"
    );
    assert!(
        rejections
            .iter()
            .all(|rejection| rejection == "503 warming_up"),
        "{rejections:?}"
    );
    assert_eq!(
        count_served_and_list_rejected(&sidecar, 50, "x-outrigger-weighed: 1\r\n").0,
        50,
        "requests of a client with warm-up support are admitted"
    );
    assert_eq!(
        app.requests().last().unwrap().header("x-outrigger-weighed"),
        None,
        "the header is removed before the request is forwarded"
    );
    let shadow_warm_up = "warmUp: {mode: Shadow, window: 10h, minPercent: 20}";
    let shadow_policy = policy_with_replica(&app, &replica, shadow_warm_up);
    assert_eq!(sidecar.reload(&shadow_policy).status, 200);
    assert_eq!(count_served_and_list_rejected(&sidecar, 10, "").0, 10);
    assert_eq!(
        sidecar.metric("outrigger_shadow_refusals_total{route=\"in\",reason=\"warming_up\"}"),
        8.0
    );
}

#[test]
fn a_warming_instance_rejects_nothing_without_a_warm_replica() {
    let app = ScriptedBackend::healthy();
    let (replica, is_broken) = ScriptedBackend::switchable();
    is_broken.store(true, Ordering::SeqCst);
    let alone = Sidecar::start(&policy(&[app.address], &lifecycle_section(LONG_WARM_UP)));
    assert_eq!(
        count_served_and_list_rejected(&alone, 50, "").0,
        50,
        "no replicas are configured"
    );
    let only_healthy = Sidecar::start(&policy_with_replica(&app, &replica, LONG_WARM_UP));
    eventually("the replica is unhealthy", || {
        only_healthy
            .events()
            .iter()
            .any(|event| event.contains("of replicas is unhealthy"))
    });
    assert_eq!(count_served_and_list_rejected(&only_healthy, 50, "").0, 50);
    // All instances of the service are new, so no replica can take the rest of the load.
    let cold = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nx-outrigger-started-at: 99999999999; window=600; min=10\r\n\
         content-length: 0\r\n\r\n"
            .to_owned()
    });
    let all_warming = Sidecar::start(&policy_with_replica(&app, &cold, LONG_WARM_UP));
    wait_for_healthy_replica(&all_warming);
    assert_eq!(count_served_and_list_rejected(&all_warming, 50, "").0, 50);
}

fn connection_limit_section(limit: u32) -> String {
    format!("  defaults: {{connectionLimits: {{maxParallelRequests: {limit}}}}}\n")
}

/// Sends three slow requests, requests a drain that requires capacity, and verifies its report.
fn check_capacity_report(policy: &str, gate: &ResponseGate, expected_verdict: &str) {
    let is_accepted = expected_verdict == "enough";
    let sidecar = Sidecar::start(policy);
    let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    eventually("the requests are in flight", || sidecar.in_flight() == 3);
    let response = sidecar.call_admin("POST", "/api/v1/drain?requireCapacity=true");
    let report: serde_json::Value = serde_json::from_str(&response.text()).unwrap();
    assert_eq!(
        (response.status, report["capacity"]["verdict"].as_str()),
        (if is_accepted { 202 } else { 409 }, Some(expected_verdict)),
        "{report}"
    );
    if is_accepted {
        assert_eq!(
            (
                &report["capacity"]["in_flight_each"],
                &report["capacity"]["replicas_staying"]
            ),
            (&4.5.into(), &2.into()),
            "{report}"
        );
    }
    assert_eq!(
        sidecar.admin_json("/api/v1/status")["lifecycle"],
        if is_accepted { "draining" } else { "serving" }
    );
    clients.iter().for_each(|_| gate.release_one());
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn a_drain_that_requires_capacity_reports_whether_the_replicas_have_it() {
    let (app, gate) = ScriptedBackend::gated_with("done");
    let replicas = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let one_replica = format!("endpoints: [\"{}\"]", replicas[0].address);
    let two_replicas = format!(
        "endpoints: [\"{}\", \"{}\"]",
        replicas[0].address, replicas[1].address
    );
    let lifecycle = lifecycle_section("drain: {delay: 10s}, replicas: {backend: replicas}");
    let table = [
        ("", Some(10), &two_replicas, "unknown_replicas"),
        (lifecycle.as_str(), None, &two_replicas, "unknown_limit"),
        (lifecycle.as_str(), Some(4), &two_replicas, "too_little"),
        (lifecycle.as_str(), Some(5), &one_replica, "too_little"),
        (lifecycle.as_str(), Some(5), &two_replicas, "enough"),
    ];
    for (lifecycle, limit, endpoints, expected_verdict) in table {
        let policy = PolicyBuilder::to_backend(&app)
            .backend("replicas", endpoints)
            .sections(lifecycle)
            .sections(&limit.map(connection_limit_section).unwrap_or_default())
            .build();
        check_capacity_report(&policy, &gate, expected_verdict);
    }
}

fn readiness_status(sidecar: &SidecarProcess) -> u16 {
    Client::connect(sidecar.admin_address.parse().unwrap())
        .get("/readyz")
        .status
}

#[test]
fn the_drain_command_can_require_capacity_in_the_replicas() {
    let app = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        &policy(
            &[app.address],
            &lifecycle_section("drain: {delay: 0s, quietPeriod: 0s}"),
        ),
    );
    let sidecar = SidecarProcess::start(&directory);
    eventually("the instance is ready", || {
        readiness_status(&sidecar) == 200
    });
    let drain = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["drain", "--admin", &sidecar.admin_address])
            .args(arguments)
            .output()
            .unwrap()
    };
    let rejected_drain = drain(&["--require-capacity"]);
    let error = String::from_utf8_lossy(&rejected_drain.stderr).into_owned();
    assert!(
        rejected_drain.status.code() == Some(1)
            && error.contains("the other replicas are unknown")
            && error.contains("--force"),
        "{error}"
    );
    assert_eq!(
        readiness_status(&sidecar),
        200,
        "a rejected drain does not start"
    );
    assert_eq!(
        drain(&["--require-capacity", "--force"]).status.code(),
        Some(0)
    );
    assert_eq!(readiness_status(&sidecar), 503);
}

#[test]
fn the_drain_command_can_wait_until_the_app_has_ended() {
    let app = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    let policy = PolicyBuilder::to_backend(&app)
        .backend_fields("healthCheck: {active: {type: TCP, interval: 20ms}}")
        .sections(&lifecycle_section(
            "startup: {requireBackend: app}, drain: {delay: 0s, quietPeriod: 0s}",
        ))
        .build();
    directory.write("policy.yaml", &policy);
    let sidecar = SidecarProcess::start(&directory);
    eventually("the instance is ready", || {
        readiness_status(&sidecar) == 200
    });
    let mut drain = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let mut drain = drain
        .args([
            "drain",
            "--until-app-ends",
            "--admin",
            &sidecar.admin_address,
        ])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the instance is drained", || {
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/api/v1/status")
            .text()
            .contains("drained")
    });
    assert!(
        drain.try_wait().unwrap().is_none(),
        "the command waits while the app runs"
    );
    drop(app);
    assert_eq!(drain.wait().unwrap().code(), Some(0));
}

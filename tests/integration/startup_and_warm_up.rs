//! Coming: when an instance is ready, what it takes while it is new, and whether the others could do without it.

use std::sync::atomic::Ordering;

use crate::support::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{ok_response, response},
    eventually,
    policy::{policy, policy_with_backend_fields, quoted_addresses, with_backend},
    process::SidecarProcess,
};

/// A warm-up that stays where it begins for as long as a test lasts.
const LONG_WARM_UP: &str = "warmUp: {window: 10h, minPercent: 20}";

/// With another instance of the service, that is checked.
fn with_checked_replica(other: &ScriptedBackend, policy: &str) -> String {
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    with_backend("others", other, policy)
        .replace("name: others,", &format!("name: others, {check},"))
}

/// Waits until it is known of the other instance that it is well.
fn wait_for_healthy_replica(sidecar: &Sidecar) {
    eventually("the other one is well", || {
        sidecar
            .admin_json("/api/v1/backends")
            .to_string()
            .contains("\"health\":\"healthy\"")
    });
}

fn lifecycle_section(sections: &str) -> String {
    format!("  lifecycle: {{{sections}}}\n")
}

/// How many of so many requests were answered with this status, and in which other ways the rest.
fn count_served_and_list_rejected(
    sidecar: &Sidecar,
    count: usize,
    headers: &str,
) -> (usize, Vec<String>) {
    let mut client = sidecar.client();
    let mut others = Vec::new();
    for _ in 0..count {
        let response = client
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n"))
            .read_response();
        if response.status != 200 {
            others.push(format!("{} {}", response.status, response.reason()));
        }
    }
    (count - others.len(), others)
}

#[test]
fn readiness_depends_on_another_backend_only_if_it_is_a_readiness_gate() {
    let (app, (dependency, is_broken)) =
        (ScriptedBackend::healthy(), ScriptedBackend::switchable());
    is_broken.store(true, Ordering::SeqCst);
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let with = |sections: &str| {
        with_backend("payments", &dependency, &policy(&[app.address], sections))
            .replace("name: payments,", &format!("name: payments, {check},"))
    };
    let sidecar = Sidecar::start(&with(""));
    eventually("the dependency is ill", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("of payments is unhealthy"))
    });
    assert_eq!(
        sidecar.call_admin("GET", "/readyz").status,
        200,
        "a dependency that fails takes nobody down"
    );
    let gated = lifecycle_section("readinessGates: [payments]");
    assert_eq!(sidecar.reload(&with(&gated)).status, 200);
    let report = sidecar.call_admin("GET", "/readyz?verbose");
    assert!(
        report.status == 503 && report.text().contains("[-] backend-available:payments"),
        "{}",
        report.text()
    );
    is_broken.store(false, Ordering::SeqCst);
    eventually("it is ready", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
    is_broken.store(true, Ordering::SeqCst);
    eventually("it is not ready", || {
        sidecar.call_admin("GET", "/readyz").status == 503
    });
    assert_eq!(sidecar.reload(&with("")).status, 200);
    assert!(
        !sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("payments")
    );
}

#[test]
fn an_instance_is_not_ready_before_its_readiness_gate_was_checked() {
    let (slow, gate) = ScriptedBackend::gated_with("well");
    let check =
        "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 10s, http: {path: /healthz}}}";
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&slow]),
        check,
        &lifecycle_section("readinessGates: [app]"),
    ));
    assert_eq!(sidecar.call_admin("GET", "/readyz").status, 503);
    gate.release_one();
    eventually("it is ready", || {
        gate.release_one();
        sidecar.call_admin("GET", "/readyz").status == 200
    });
}

#[test]
fn app_probes_are_forwarded_even_while_the_instance_drains() {
    let app = ScriptedBackend::responding_with(|seen| {
        match seen.request_line().split(' ').nth(1).unwrap() {
            "/healthz" => ok_response("well"),
            "/live" => ok_response("alive"),
            _ => response(503, "not yet"),
        }
    });
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, http: {path: /healthz}}}";
    let sections = lifecycle_section(
        "startup: {requireBackend: app}, appProbes: {livez: /live, startupz: /started}",
    );
    let sidecar = Sidecar::start(&policy_with_backend_fields(
        &quoted_addresses(&[&app]),
        check,
        &sections,
    ));
    let probe = |name: &str| {
        let response = sidecar.call_admin("GET", &format!("/app-health/{name}"));
        (response.status, response.text())
    };
    for _ in 0..2 {
        assert_eq!(probe("livez"), (200, "alive".to_owned()));
        assert_eq!(
            probe("readyz"),
            (200, "well".to_owned()),
            "without a path, that of the check"
        );
        assert_eq!(probe("startupz"), (503, "not yet".to_owned()));
        assert_eq!(probe("connect").0, 200);
        assert_eq!(probe("nonsense").0, 404);
        sidecar.call_admin("POST", "/api/v1/drain");
    }
    drop(app);
    for name in ["livez", "connect"] {
        // What the app said last is given again for a moment.
        eventually("it is told why", || {
            let (status, why) = probe(name);
            status == 503 && why.starts_with("the app does not answer: ")
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
        let other = ScriptedBackend::healthy();
        let sections = lifecycle_section(&format!("{LONG_WARM_UP}, replicas: {{backend: others}}"));
        let cold = Sidecar::start(&with_checked_replica(
            &other,
            &policy(&[app.address], &sections),
        ));
        wait_for_healthy_replica(&cold);
        let endpoints = [
            format!("\"{}\"", cold.address("inbound")),
            format!("\"{}\"", warm.address),
        ];
        let caller = Sidecar::start(&policy_with_backend_fields(
            &endpoints,
            &format!("loadBalancer: {{type: {balancer}}}"),
            "  defaults: {retry: {mode: Off}}\n",
        ));
        let mut client = caller.client();
        let names: Vec<String> = (0..1_200).map(|_| client.get("/").text()).collect();
        let share = names.iter().filter(|name| *name == "cold").count();
        // A fifth of a share beside a whole one: 200 of 1200, and a tenth more at most; by lot, four standard deviations.
        let share_max = if balancer == "RoundRobin" { 220 } else { 252 };
        assert!(
            (100..=share_max).contains(&share)
                && names.iter().all(|name| name == "cold" || name == "warm"),
            "{balancer}: {share} of 1200"
        );
        assert!(
            cold.metric("outrigger_refusals_total{route=\"in\",reason=\"warming_up\"}") <= 1.0,
            "but for the one that brought the news"
        );
    }
}

#[test]
fn a_warming_instance_admits_only_its_share_from_clients_without_warm_up_support() {
    let (app, other) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let sections = lifecycle_section(&format!("{LONG_WARM_UP}, replicas: {{backend: others}}"));
    let sidecar = Sidecar::start(&with_checked_replica(
        &other,
        &policy(&[app.address], &sections),
    ));
    wait_for_healthy_replica(&sidecar);
    let (served, refused) = count_served_and_list_rejected(&sidecar, 100, "");
    assert_eq!((served, app.requests().len()), (20, 20), "a fifth, evenly");
    assert!(
        refused.iter().all(|refusal| refusal == "503 warming_up"),
        "{refused:?}"
    );
    assert_eq!(
        count_served_and_list_rejected(&sidecar, 50, "x-outrigger-weighed: 1\r\n").0,
        50,
        "who gives it its share is not refused"
    );
    assert_eq!(
        app.requests().last().unwrap().header("x-outrigger-weighed"),
        None,
        "that is between sidecars"
    );
    assert_eq!(
        sidecar
            .reload(&with_checked_replica(
                &other,
                &policy(
                    &[app.address],
                    &sections.replace("window", "mode: Shadow, window")
                )
            ))
            .status,
        200
    );
    assert_eq!(count_served_and_list_rejected(&sidecar, 10, "").0, 10);
    assert_eq!(
        sidecar.metric("outrigger_shadow_refusals_total{route=\"in\",reason=\"warming_up\"}"),
        8.0
    );
}

#[test]
fn a_warming_instance_rejects_nothing_without_a_warm_replica() {
    let app = ScriptedBackend::healthy();
    let (other, is_broken) = ScriptedBackend::switchable();
    is_broken.store(true, Ordering::SeqCst);
    let alone = Sidecar::start(&policy(&[app.address], &lifecycle_section(LONG_WARM_UP)));
    assert_eq!(
        count_served_and_list_rejected(&alone, 50, "").0,
        50,
        "nobody knows of another"
    );
    let text = with_checked_replica(
        &other,
        &policy(
            &[app.address],
            &lifecycle_section(&format!("{LONG_WARM_UP}, replicas: {{backend: others}}")),
        ),
    );
    let last = Sidecar::start(&text);
    eventually("the other one is ill", || {
        last.events()
            .iter()
            .any(|event| event.contains("of others is unhealthy"))
    });
    assert_eq!(count_served_and_list_rejected(&last, 50, "").0, 50);
    // A whole service that is new: each is there, and none may be leaned on.
    let cold = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nx-outrigger-started-at: 99999999999; window=600; min=10\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    let first = Sidecar::start(&with_checked_replica(
        &cold,
        &policy(
            &[app.address],
            &lifecycle_section(&format!("{LONG_WARM_UP}, replicas: {{backend: others}}")),
        ),
    ));
    wait_for_healthy_replica(&first);
    assert_eq!(count_served_and_list_rejected(&first, 50, "").0, 50);
}

#[test]
fn a_drain_that_requires_capacity_reports_whether_the_replicas_have_it() {
    let (app, gate) = ScriptedBackend::gated_with("done");
    let replicas = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let limited = |limit: u32| {
        format!("  defaults: {{connectionLimits: {{maxParallelRequests: {limit}}}}}\n")
    };
    let with_replicas = lifecycle_section("drain: {delay: 10s}, replicas: {backend: others}");
    let with = |sections: &str, replicas: &[&ScriptedBackend]| {
        let addresses: Vec<String> = replicas
            .iter()
            .map(|other| format!("\"{}\"", other.address))
            .collect();
        let backend = format!(
            "    - {{name: others, endpoints: [{}]}}\n  routes:\n",
            addresses.join(", ")
        );
        policy(&[app.address], sections).replace("  routes:\n", &backend)
    };
    let both_replicas = [&replicas[0], &replicas[1]];
    let table = [
        (with(&limited(10), &both_replicas), "unknown_replicas"),
        (with(&with_replicas, &both_replicas), "unknown_limit"),
        (
            with(&(with_replicas.clone() + &limited(4)), &both_replicas),
            "too_little",
        ),
        (
            with(&(with_replicas.clone() + &limited(5)), &both_replicas[..1]),
            "too_little",
        ),
        (
            with(&(with_replicas.clone() + &limited(5)), &both_replicas),
            "enough",
        ),
    ];
    for (policy, expected) in table {
        let sidecar = Sidecar::start(&policy);
        let mut slow: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
        for client in &mut slow {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        }
        eventually("they are in flight", || sidecar.in_flight() == 3);
        let response = sidecar.call_admin("POST", "/api/v1/drain?requireCapacity=true");
        let report: serde_json::Value = serde_json::from_str(&response.text()).unwrap();
        assert_eq!(
            (response.status, report["capacity"]["verdict"].as_str()),
            (if expected == "enough" { 202 } else { 409 }, Some(expected)),
            "{report}"
        );
        if expected == "enough" {
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
            if expected == "enough" {
                "draining"
            } else {
                "serving"
            }
        );
        slow.iter().for_each(|_| gate.release_one());
        slow.iter_mut()
            .for_each(|client| assert_eq!(client.read_response().status, 200));
    }
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
    eventually("it is ready", || {
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/readyz")
            .status
            == 200
    });
    let drain = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["drain", "--admin", &sidecar.admin_address])
            .args(arguments)
            .output()
            .unwrap()
    };
    let refused = drain(&["--require-capacity"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1)
            && why.contains("nobody knows of other replicas")
            && why.contains("--force"),
        "{why}"
    );
    assert_eq!(
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/readyz")
            .status,
        200,
        "nothing has begun"
    );
    assert_eq!(
        drain(&["--require-capacity", "--force"]).status.code(),
        Some(0)
    );
    assert_eq!(
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/readyz")
            .status,
        503
    );
}

#[test]
fn the_drain_command_can_wait_until_the_app_has_ended() {
    let app = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    let check = "healthCheck: {active: {type: TCP, interval: 20ms}}";
    directory.write(
        "policy.yaml",
        &policy_with_backend_fields(
            &quoted_addresses(&[&app]),
            check,
            &lifecycle_section(
                "startup: {requireBackend: app}, drain: {delay: 0s, quietPeriod: 0s}",
            ),
        ),
    );
    let sidecar = SidecarProcess::start(&directory);
    eventually("it is ready", || {
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/readyz")
            .status
            == 200
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
    eventually("it has drained", || {
        Client::connect(sidecar.admin_address.parse().unwrap())
            .get("/api/v1/status")
            .text()
            .contains("drained")
    });
    assert!(
        drain.try_wait().unwrap().is_none(),
        "the app is still there"
    );
    drop(app);
    assert_eq!(drain.wait().unwrap().code(), Some(0));
}

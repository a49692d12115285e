//! Coming: when an instance is ready, what it takes while it is new, and whether the others could do without it.

use std::sync::atomic::Ordering;

use crate::support::{
    Backend, Client, Directory, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    process::Running,
    sidecar::{addresses, also, policy, policy_with},
};

/// A warm-up that stays where it begins for as long as a test lasts.
const COLD: &str = "warmUp: {window: 10h, minPercent: 20}";

/// With another instance of the service, that is checked.
fn beside(other: &Backend, policy: &str) -> String {
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    also("others", other, policy).replace("name: others,", &format!("name: others, {check},"))
}

/// Waits until it is known of the other instance that it is well.
fn knows_the_other(sidecar: &Sidecar) {
    eventually("the other one is well", || {
        sidecar
            .json("/api/v1/backends")
            .to_string()
            .contains("\"health\":\"healthy\"")
    });
}

fn lifecycle(sections: &str) -> String {
    format!("  lifecycle: {{{sections}}}\n")
}

/// How many of so many requests were answered with this status, and in which other ways the rest.
fn outcomes(sidecar: &Sidecar, count: usize, headers: &str) -> (usize, Vec<String>) {
    let mut client = sidecar.client();
    let mut others = Vec::new();
    for _ in 0..count {
        let answer = client
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n"))
            .answer();
        if answer.status != 200 {
            others.push(format!("{} {}", answer.status, answer.reason()));
        }
    }
    (count - others.len(), others)
}

#[test]
fn readiness_waits_for_another_backend_only_where_it_is_written() {
    let (app, (dependency, is_broken)) = (Backend::healthy(), Backend::switchable());
    is_broken.store(true, Ordering::SeqCst);
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, unhealthyThreshold: 1, http: {path: /healthz}}}";
    let with = |sections: &str| {
        also("payments", &dependency, &policy(&[app.address], sections))
            .replace("name: payments,", &format!("name: payments, {check},"))
    };
    let sidecar = Sidecar::start(&with(""));
    eventually("the dependency is ill", || {
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("of payments is Unhealthy"))
    });
    assert_eq!(
        sidecar.admin("GET", "/readyz").status,
        200,
        "a dependency that fails takes nobody down"
    );
    let gated = lifecycle("readinessGates: [payments]");
    assert_eq!(sidecar.reload(&with(&gated)).status, 200);
    let report = sidecar.admin("GET", "/readyz?verbose");
    assert!(
        report.status == 503 && report.text().contains("[-] backend-available:payments"),
        "{}",
        report.text()
    );
    is_broken.store(false, Ordering::SeqCst);
    eventually("it is ready", || {
        sidecar.admin("GET", "/readyz").status == 200
    });
    is_broken.store(true, Ordering::SeqCst);
    eventually("it is not ready", || {
        sidecar.admin("GET", "/readyz").status == 503
    });
    assert_eq!(sidecar.reload(&with("")).status, 200);
    assert!(
        !sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("payments")
    );
}

#[test]
fn an_instance_is_not_ready_before_a_gate_was_checked() {
    let gate = Gate::new();
    let there = gate.clone();
    let slow = Backend::answering(move |_| {
        there.pass();
        ok("well")
    });
    let check =
        "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 10s, http: {path: /healthz}}}";
    let sidecar = Sidecar::start(&policy_with(
        &addresses(&[&slow]),
        check,
        &lifecycle("readinessGates: [app]"),
    ));
    assert_eq!(sidecar.admin("GET", "/readyz").status, 503);
    gate.open();
    eventually("it is ready", || {
        gate.open();
        sidecar.admin("GET", "/readyz").status == 200
    });
}

#[test]
fn the_apps_own_probes_are_passed_through_even_while_the_instance_drains() {
    let app = Backend::answering(|seen| match seen.line().split(' ').nth(1).unwrap() {
        "/healthz" => ok("well"),
        "/live" => ok("alive"),
        _ => answer(503, "not yet"),
    });
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, http: {path: /healthz}}}";
    let sections =
        lifecycle("startup: {requireBackend: app}, appProbes: {livez: /live, startupz: /started}");
    let sidecar = Sidecar::start(&policy_with(&addresses(&[&app]), check, &sections));
    let probe = |name: &str| {
        let answer = sidecar.admin("GET", &format!("/app-health/{name}"));
        (answer.status, answer.text())
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
        sidecar.admin("POST", "/api/v1/drain");
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
fn without_a_required_backend_nobody_knows_the_app() {
    let sidecar = Sidecar::start(&policy(&[Backend::healthy().address], ""));
    let answer = sidecar.admin("GET", "/app-health/livez");
    assert!(
        answer.status == 404 && answer.text().contains("requireBackend"),
        "{}",
        answer.text()
    );
}

#[test]
fn a_caller_gives_a_new_instance_its_share_on_the_curve_and_is_not_refused() {
    for balancer in ["RoundRobin", "Random", "LeastRequest"] {
        let (app, warm) = (
            Backend::answering(|_| ok("cold")),
            Backend::answering(|_| ok("warm")),
        );
        let other = Backend::healthy();
        let sections = lifecycle(&format!("{COLD}, replicas: {{backend: others}}"));
        let cold = Sidecar::start(&beside(&other, &policy(&[app.address], &sections)));
        knows_the_other(&cold);
        let endpoints = [
            format!("\"{}\"", cold.address("inbound")),
            format!("\"{}\"", warm.address),
        ];
        let caller = Sidecar::start(&policy_with(
            &endpoints,
            &format!("loadBalancer: {{type: {balancer}}}"),
            "  defaults: {retry: {mode: Off}}\n",
        ));
        let mut client = caller.client();
        let names: Vec<String> = (0..1_200).map(|_| client.get("/").text()).collect();
        let share = names.iter().filter(|name| *name == "cold").count();
        // A fifth of a share beside a whole one: 200 of 1200, and a tenth more at most; by lot, four standard deviations.
        let most = if balancer == "RoundRobin" { 220 } else { 252 };
        assert!(
            (100..=most).contains(&share)
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
fn of_callers_that_do_not_cooperate_a_new_instance_takes_its_share_and_refuses_the_rest_unprocessed()
 {
    let (app, other) = (Backend::healthy(), Backend::healthy());
    let sections = lifecycle(&format!("{COLD}, replicas: {{backend: others}}"));
    let sidecar = Sidecar::start(&beside(&other, &policy(&[app.address], &sections)));
    knows_the_other(&sidecar);
    let (served, refused) = outcomes(&sidecar, 100, "");
    assert_eq!((served, app.seen().len()), (20, 20), "a fifth, evenly");
    assert!(
        refused.iter().all(|refusal| refusal == "503 warming_up"),
        "{refused:?}"
    );
    assert_eq!(
        outcomes(&sidecar, 50, "x-outrigger-weighed: 1\r\n").0,
        50,
        "who gives it its share is not refused"
    );
    assert_eq!(
        app.seen().last().unwrap().header("x-outrigger-weighed"),
        None,
        "that is between sidecars"
    );
    assert_eq!(
        sidecar
            .reload(&beside(
                &other,
                &policy(
                    &[app.address],
                    &sections.replace("window", "mode: Shadow, window")
                )
            ))
            .status,
        200
    );
    assert_eq!(outcomes(&sidecar, 10, "").0, 10);
    assert_eq!(
        sidecar.metric("outrigger_shadow_refusals_total{route=\"in\",reason=\"warming_up\"}"),
        8.0
    );
}

#[test]
fn nobody_is_refused_who_has_nowhere_else_to_go() {
    let app = Backend::healthy();
    let (other, is_broken) = Backend::switchable();
    is_broken.store(true, Ordering::SeqCst);
    let alone = Sidecar::start(&policy(&[app.address], &lifecycle(COLD)));
    assert_eq!(outcomes(&alone, 50, "").0, 50, "nobody knows of another");
    let text = beside(
        &other,
        &policy(
            &[app.address],
            &lifecycle(&format!("{COLD}, replicas: {{backend: others}}")),
        ),
    );
    let last = Sidecar::start(&text);
    eventually("the other one is ill", || {
        last.events()
            .iter()
            .any(|event| event.contains("of others is Unhealthy"))
    });
    assert_eq!(outcomes(&last, 50, "").0, 50);
    // A whole service that is new: each is there, and none may be leaned on.
    let cold = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nx-outrigger-started-at: 99999999999; window=600; min=10\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    let first = Sidecar::start(&beside(
        &cold,
        &policy(
            &[app.address],
            &lifecycle(&format!("{COLD}, replicas: {{backend: others}}")),
        ),
    ));
    knows_the_other(&first);
    assert_eq!(outcomes(&first, 50, "").0, 50);
}

#[test]
fn before_it_drains_an_instance_says_whether_the_others_can_carry_the_load() {
    let gate = Gate::new();
    let there = gate.clone();
    let app = Backend::start(move |mut connection| {
        while connection.request().is_some() {
            there.pass();
            connection.send(ok("done"));
        }
    });
    let others = [Backend::healthy(), Backend::healthy()];
    let limited = |limit: u32| {
        format!("  defaults: {{connectionLimits: {{maxParallelRequests: {limit}}}}}\n")
    };
    let known = lifecycle("drain: {delay: 10s}, replicas: {backend: others}");
    let with = |sections: &str, others: &[&Backend]| {
        let addresses: Vec<String> = others
            .iter()
            .map(|other| format!("\"{}\"", other.address))
            .collect();
        let backend = format!(
            "    - {{name: others, endpoints: [{}]}}\n  routes:\n",
            addresses.join(", ")
        );
        policy(&[app.address], sections).replace("  routes:\n", &backend)
    };
    let both = [&others[0], &others[1]];
    let table = [
        (with(&limited(10), &both), "unknown_replicas"),
        (with(&known, &both), "unknown_limit"),
        (with(&(known.clone() + &limited(4)), &both), "too_little"),
        (
            with(&(known.clone() + &limited(5)), &both[..1]),
            "too_little",
        ),
        (with(&(known.clone() + &limited(5)), &both), "enough"),
    ];
    for (policy, expected) in table {
        let sidecar = Sidecar::start(&policy);
        let mut slow: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
        for client in &mut slow {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        }
        eventually("they are in flight", || sidecar.in_flight() == 3);
        let told = sidecar.admin("POST", "/api/v1/drain?requireCapacity=true");
        let told_of: serde_json::Value = serde_json::from_str(&told.text()).unwrap();
        assert_eq!(
            (told.status, told_of["capacity"]["verdict"].as_str()),
            (if expected == "enough" { 202 } else { 409 }, Some(expected)),
            "{told_of}"
        );
        if expected == "enough" {
            assert_eq!(
                (
                    &told_of["capacity"]["in_flight_each"],
                    &told_of["capacity"]["replicas_staying"]
                ),
                (&4.5.into(), &2.into()),
                "{told_of}"
            );
        }
        assert_eq!(
            sidecar.json("/api/v1/status")["lifecycle"],
            if expected == "enough" {
                "draining"
            } else {
                "serving"
            }
        );
        slow.iter().for_each(|_| gate.open());
        slow.iter_mut()
            .for_each(|client| assert_eq!(client.answer().status, 200));
    }
}

#[test]
fn from_the_command_line_a_drain_may_require_that_the_others_can_carry_the_load() {
    let app = Backend::healthy();
    let directory = Directory::new();
    directory.write(
        "policy.yaml",
        &policy(
            &[app.address],
            &lifecycle("drain: {delay: 0s, quietPeriod: 0s}"),
        ),
    );
    let running = Running::start(&directory);
    eventually("it is ready", || {
        Client::connect(running.admin.parse().unwrap())
            .get("/readyz")
            .status
            == 200
    });
    let drain = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["drain", "--admin", &running.admin])
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
        Client::connect(running.admin.parse().unwrap())
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
        Client::connect(running.admin.parse().unwrap())
            .get("/readyz")
            .status,
        503
    );
}

#[test]
fn a_drain_from_the_command_line_can_wait_until_the_app_has_ended() {
    let app = Backend::healthy();
    let directory = Directory::new();
    let check = "healthCheck: {active: {type: TCP, interval: 20ms}}";
    directory.write(
        "policy.yaml",
        &policy_with(
            &addresses(&[&app]),
            check,
            &lifecycle("startup: {requireBackend: app}, drain: {delay: 0s, quietPeriod: 0s}"),
        ),
    );
    let running = Running::start(&directory);
    eventually("it is ready", || {
        Client::connect(running.admin.parse().unwrap())
            .get("/readyz")
            .status
            == 200
    });
    let mut drain = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let mut drain = drain
        .args(["drain", "--until-app-ends", "--admin", &running.admin])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has drained", || {
        Client::connect(running.admin.parse().unwrap())
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

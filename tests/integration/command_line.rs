//! The command line: exit codes, output, signals and the demo.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    process::{Command, Output, Stdio},
};

use crate::support::{
    Client, ScriptedBackend, TempDirectory, eventually,
    policy::{PolicyBuilder, policy},
    process::SidecarProcess,
};

fn run_outrigger(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(arguments)
        .env_remove("OUTRIGGER_POLICIES")
        .output()
        .unwrap()
}

fn exit_code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the sidecar with a policy directory and an admin address.
fn run_sidecar(directory: &TempDirectory, admin_address: &str) -> Output {
    let path = directory.path().display().to_string();
    run_outrigger(&["run", "--policies", &path, "--admin", admin_address])
}

#[test]
fn help_and_version_exit_with_0_and_usage_errors_with_64() {
    assert_eq!(exit_code(&run_outrigger(&["--help"])), 0);
    assert_eq!(exit_code(&run_outrigger(&["--version"])), 0);
    assert_eq!(exit_code(&run_outrigger(&["explode"])), 64);
    assert_eq!(
        exit_code(&run_outrigger(&["run", "--admin", "nonsense"])),
        64
    );
    assert_eq!(
        exit_code(&run_outrigger(&["run", "--poll-interval", "0s"])),
        64
    );
}

#[test]
fn a_missing_or_invalid_policy_exits_with_65() {
    let directory = TempDirectory::new();
    let empty = run_sidecar(&directory, "127.0.0.1:0");
    assert!(
        exit_code(&empty) == 65 && stderr(&empty).contains("there is no *.yaml in it"),
        "{}",
        stderr(&empty)
    );
    directory.write("policy.yaml", "kind: Nonsense\n");
    assert_eq!(exit_code(&run_sidecar(&directory, "127.0.0.1:0")), 65);
}

#[test]
fn an_address_that_cannot_be_bound_exits_with_69() {
    let directory = TempDirectory::new();
    let bound_listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = bound_listener.local_addr().unwrap();
    directory.write("policy.yaml", &policy(&[address], ""));
    let with_bound_admin_address = run_sidecar(&directory, &address.to_string());
    assert!(
        exit_code(&with_bound_admin_address) == 69
            && stderr(&with_bound_admin_address).contains("cannot be bound"),
        "{}",
        stderr(&with_bound_admin_address)
    );
    let policy = PolicyBuilder::new(&[address]).listener_address(address);
    directory.write("policy.yaml", &policy.build());
    assert_eq!(exit_code(&run_sidecar(&directory, "127.0.0.1:0")), 69);
}

#[test]
fn an_unreachable_admin_api_exits_with_69_and_a_failed_healthcheck_with_1() {
    let unused_address = ScriptedBackend::unused_address().to_string();
    assert_eq!(
        exit_code(&run_outrigger(&["status", "--admin", &unused_address])),
        69
    );
    assert_eq!(
        exit_code(&run_outrigger(&["healthcheck", "--admin", &unused_address])),
        1
    );
}

#[test]
fn the_shipped_policies_are_valid_and_the_committed_schema_is_current() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let examples: Vec<String> = std::fs::read_dir(format!("{shipped}/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    assert!(examples.len() >= 5);
    let mut arguments = vec!["check", shipped];
    arguments.extend(examples.iter().map(String::as_str));
    let checked = run_outrigger(&arguments);
    assert!(
        exit_code(&checked) == 0 && stderr(&checked).is_empty(),
        "{}",
        stderr(&checked)
    );
    let committed =
        std::fs::read_to_string(format!("{shipped}/resilience-policy.schema.json")).unwrap();
    assert!(
        stdout(&run_outrigger(&["schema"])) == committed,
        "run `outrigger schema > policies/resilience-policy.schema.json`"
    );
}

#[test]
fn check_writes_diagnostics_as_text_json_and_github_annotations() {
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        concat!(
            "apiVersion: outrigger.dev/v1alpha1\n",
            "kind: ResiliencePolicy\n",
            "metadata: {name: a}\n",
            "spec:\n",
            "  rowts: []\n",
            "  backends: [{name: b, endpoints: [x]}]\n"
        ),
    );
    let path = directory.path().display().to_string();
    let human = run_outrigger(&["check", &path]);
    assert!(
        exit_code(&human) == 65 && stderr(&human).contains("5 |   rowts: []\n  |   ^"),
        "{}",
        stderr(&human)
    );
    let json: serde_json::Value = serde_json::from_str(&stdout(&run_outrigger(&[
        "check", "--format", "json", &path,
    ])))
    .unwrap();
    assert_eq!(
        (
            json[0]["line"].as_u64(),
            json[0]["column"].as_u64(),
            json[0]["hint"].as_str()
        ),
        (Some(5), Some(3), Some("did you mean `routes`?"))
    );
    let github = stdout(&run_outrigger(&["check", "--format", "github", &path]));
    assert!(
        github.starts_with("::error file=")
            && github.contains(",line=5,col=3::unknown key `rowts`"),
        "{github}"
    );
}

#[test]
fn explain_shows_the_route_and_the_source_of_each_value() {
    let shipped = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/policies/examples/read-write-split.yaml"
    );
    let read = stdout(&run_outrigger(&[
        "explain",
        "--policies",
        shipped,
        "GET",
        "http://orders.internal/orders/7",
    ]));
    for expected in [
        "route read",
        "backend            replicas",
        "10.0.1.11:8080",
        "timeouts         request 2s",
        "(from backend-policy:reads)",
        "scope Endpoint",
    ] {
        assert!(read.contains(expected), "{expected} in {read}");
    }
    let write = stdout(&run_outrigger(&[
        "explain",
        "--policies",
        shipped,
        "POST",
        "http://orders.internal/orders",
        "-H",
        "x-a: b",
    ]));
    assert!(
        write.contains("route write")
            && write.contains(
                "retryConstraint  budget.percent 20, budget.interval 10s, \
                 minRetryRate.count 10, minRetryRate.interval 1s, state primary   (from built-in)"
            ),
        "{write}"
    );
    let none = stdout(&run_outrigger(&[
        "explain",
        "--policies",
        shipped,
        "GET",
        "http://other/",
    ]));
    assert!(none.contains("no route"), "{none}");
}

#[test]
fn diff_describes_what_a_reload_would_change() {
    let (old, new) = (TempDirectory::new(), TempDirectory::new());
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    old.write(
        "policy.yaml",
        &policy(&[address], "  defaults: {circuitBreaker: {}}\n"),
    );
    new.write(
        "policy.yaml",
        &policy(
            &[address],
            "  defaults: {circuitBreaker: {samplingWindow: 20s}, timeouts: {request: 9s}}\n",
        ),
    );
    let paths = [
        old.path().display().to_string(),
        new.path().display().to_string(),
    ];
    let output = stdout(&run_outrigger(&["diff", &paths[0], &paths[1]]));
    for expected in [
        "route in: circuitBreaker of backend app: samplingWindow 10s -> 20s; its state is \
         retained, its counts are reset\n",
        "route in: timeouts of backend app: request 15s -> 9s, origin built-in -> defaults\n",
    ] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
    assert_eq!(
        stdout(&run_outrigger(&["diff", &paths[0], &paths[0]])),
        "nothing would change\n"
    );
}

#[test]
fn the_command_line_inspects_changes_and_drains_a_running_sidecar() {
    let backend = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        &policy(
            &[backend.address],
            concat!(
                "  defaults: {circuitBreaker: {}}\n",
                "  lifecycle: {drain: {delay: 0s, quietPeriod: 0s}}\n"
            ),
        ),
    );
    let mut sidecar = SidecarProcess::start(&directory);
    let admin = sidecar.admin_address.clone();
    let run = |arguments: &[&str]| run_outrigger(&[arguments, &["--admin", &admin]].concat());
    eventually("the sidecar is ready", || {
        exit_code(&run(&["healthcheck"])) == 0
    });
    assert!(stdout(&run(&["status"])).contains("\"lifecycle\": \"serving\""));
    assert!(stdout(&run(&["breaker"])).contains("\"name\": \"app\""));
    assert!(stdout(&run(&["breaker", "app", "force-open"])).contains("forced_open"));
    assert!(stdout(&run(&["breaker", "app"])).contains("forced_open"));
    assert_eq!(exit_code(&run(&["breaker", "unknown"])), 64);
    directory.write("policy.yaml", "nonsense: 1\n");
    let rejected = run(&["reload"]);
    assert!(
        exit_code(&rejected) == 65 && stderr(&rejected).contains("unknown key `nonsense`"),
        "{}",
        stderr(&rejected)
    );
    let drained = run(&["drain"]);
    assert_eq!(
        (exit_code(&drained), stdout(&drained).lines().last()),
        (0, Some("drained")),
        "{}",
        stderr(&drained)
    );
    assert!(
        stdout(&drained).contains("the other replicas are unknown"),
        "{}",
        stdout(&drained)
    );
    assert!(
        stdout(&run(&["status"])).contains("\"lifecycle\": \"drained\""),
        "the process keeps running after the drain"
    );
    assert_eq!(exit_code(&run(&["healthcheck"])), 1);
    sidecar.send_signal("-TERM");
    assert_eq!(sidecar.child.wait().unwrap().code(), Some(0));
}

#[test]
fn sighup_reloads_sigterm_drains_and_a_second_sigterm_terminates() {
    let backend = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    directory.write(
        "policy.yaml",
        &policy(
            &[backend.address],
            "  lifecycle: {drain: {delay: 0s, quietPeriod: 0s}}\n",
        ),
    );
    let mut sidecar = SidecarProcess::start(&directory);
    let address: SocketAddr = sidecar.admin_address.parse().unwrap();
    let generation = || {
        let text = Client::connect(address).get("/api/v1/status").text();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["policy"]["generation"]
            .as_u64()
            .unwrap()
    };
    eventually("the first policy is active", || generation() == 1);
    directory.write(
        "policy.yaml",
        &policy(
            &[backend.address],
            "  lifecycle: {drain: {delay: 1h, timeout: 2h}}\n",
        ),
    );
    sidecar.send_signal("-HUP");
    eventually("the new policy is active", || generation() == 2);
    sidecar.send_signal("-TERM");
    eventually("the sidecar is unready", || {
        Client::connect(address).get("/readyz").status == 503
    });
    assert!(
        sidecar.child.try_wait().unwrap().is_none(),
        "the drain lasts an hour"
    );
    sidecar.send_signal("-TERM");
    assert_eq!(sidecar.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_demo_shows_a_breaker_opening_and_closing() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["demo", "--seconds", "40"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut chunk = [0; 4096];
    let milestones = [
        "a fault starts",
        "closed -> open",
        "the fault ends",
        "open -> half_open",
        "half_open -> closed",
    ];
    while !milestones
        .iter()
        .all(|milestone| output.contains(milestone))
    {
        let count = stdout.read(&mut chunk).unwrap();
        assert!(count > 0, "the demo ended with {output}");
        output += &String::from_utf8_lossy(&chunk[..count]);
    }
    for expected in [
        "curl -s",
        "x-api-key",
        "/fault/errors",
        "/flaky",
        "readyz?verbose",
        "rejected ",
        "last response in ",
    ] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

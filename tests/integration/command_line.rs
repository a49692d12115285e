//! The binary, as it is called.

use std::{
    io::Read,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use crate::support::{Backend, Client, Directory, eventually, process::Running, sidecar::policy};

fn outrigger(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(arguments)
        .env_remove("OUTRIGGER_POLICIES")
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    assert_eq!(code(&outrigger(&["--help"])), 0);
    assert_eq!(code(&outrigger(&["--version"])), 0);
    assert_eq!(code(&outrigger(&["explode"])), 64);
    assert_eq!(code(&outrigger(&["run", "--admin", "nonsense"])), 64);
    assert_eq!(code(&outrigger(&["run", "--poll-interval", "0s"])), 64);
    let directory = Directory::new();
    let path = directory.path().display().to_string();
    let empty = outrigger(&["run", "--policies", &path, "--admin", "127.0.0.1:0"]);
    assert!(
        code(&empty) == 65 && err(&empty).contains("there is no *.yaml in it"),
        "{}",
        err(&empty)
    );
    directory.write("policy.yaml", "kind: Nonsense\n");
    assert_eq!(
        code(&outrigger(&[
            "run",
            "--policies",
            &path,
            "--admin",
            "127.0.0.1:0"
        ])),
        65
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    directory.write("policy.yaml", &policy(&[address], ""));
    let bound = outrigger(&["run", "--policies", &path, "--admin", &address.to_string()]);
    assert!(
        code(&bound) == 69 && err(&bound).contains("cannot be bound"),
        "{}",
        err(&bound)
    );
    directory.write(
        "policy.yaml",
        &policy(&[address], "").replace(
            "address: \"127.0.0.1:0\"",
            &format!("address: \"{address}\""),
        ),
    );
    assert_eq!(
        code(&outrigger(&[
            "run",
            "--policies",
            &path,
            "--admin",
            "127.0.0.1:0"
        ])),
        69
    );
    let nobody = Backend::nowhere().to_string();
    assert_eq!(code(&outrigger(&["status", "--admin", &nobody])), 69);
    assert_eq!(code(&outrigger(&["healthcheck", "--admin", &nobody])), 1);
}

#[test]
fn the_shipped_policies_are_fine_and_the_committed_schema_is_current() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let examples: Vec<String> = std::fs::read_dir(format!("{shipped}/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    assert!(examples.len() >= 5);
    let mut arguments = vec!["check", shipped];
    arguments.extend(examples.iter().map(String::as_str));
    let checked = outrigger(&arguments);
    assert!(
        code(&checked) == 0 && err(&checked).is_empty(),
        "{}",
        err(&checked)
    );
    let committed =
        std::fs::read_to_string(format!("{shipped}/resilience-policy.schema.json")).unwrap();
    assert!(
        out(&outrigger(&["schema"])) == committed,
        "run `outrigger schema > policies/resilience-policy.schema.json`"
    );
}

#[test]
fn check_tells_in_three_ways() {
    let directory = Directory::new();
    directory
        .write("policy.yaml", "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {name: a}\nspec:\n  rowts: []\n  backends: [{name: b, endpoints: [x]}]\n");
    let path = directory.path().display().to_string();
    let human = outrigger(&["check", &path]);
    assert!(
        code(&human) == 65 && err(&human).contains("5 |   rowts: []\n  |   ^"),
        "{}",
        err(&human)
    );
    let json: serde_json::Value =
        serde_json::from_str(&out(&outrigger(&["check", "--format", "json", &path]))).unwrap();
    assert_eq!(
        (
            json[0]["line"].as_u64(),
            json[0]["column"].as_u64(),
            json[0]["hint"].as_str()
        ),
        (Some(5), Some(3), Some("did you mean `routes`?"))
    );
    let github = out(&outrigger(&["check", "--format", "github", &path]));
    assert!(
        github.starts_with("::error file=")
            && github.contains(",line=5,col=3::unknown key `rowts`"),
        "{github}"
    );
}

#[test]
fn explain_shows_the_route_and_where_each_value_comes_from() {
    let shipped = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/policies/examples/read-write-split.yaml"
    );
    let read = out(&outrigger(&[
        "explain",
        "--policies",
        shipped,
        "GET",
        "http://orders.internal/orders/7",
    ]));
    for words in [
        "route read",
        "backend            replicas",
        "10.0.1.11:8080",
        "timeouts         request 2s",
        "(from policy:reads)",
        "scope Endpoint",
    ] {
        assert!(read.contains(words), "{words} in {read}");
    }
    let write = out(&outrigger(&[
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
            && write
                .contains("retry budget     primary: 20 % of 10s, and 10 per 1s   (from built-in)"),
        "{write}"
    );
    let none = out(&outrigger(&[
        "explain",
        "--policies",
        shipped,
        "GET",
        "http://other/",
    ]));
    assert!(none.contains("no route"), "{none}");
}

#[test]
fn diff_says_in_words_what_a_reload_would_do() {
    let (old, new) = (Directory::new(), Directory::new());
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
    let told = out(&outrigger(&["diff", &paths[0], &paths[1]]));
    for words in [
        "breaker towards app changed, state is kept, counts begin anew with the new window",
        "timeouts towards app",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    assert_eq!(
        out(&outrigger(&["diff", &paths[0], &paths[0]])),
        "nothing would change\n"
    );
}

#[test]
fn a_running_sidecar_is_asked_changed_and_drained_from_the_command_line() {
    let backend = Backend::healthy();
    let directory = Directory::new();
    directory.write("policy.yaml", &policy(&[backend.address], "  defaults: {circuitBreaker: {}}\n  lifecycle: {drain: {delay: 0s, quietPeriod: 0s}}\n"));
    let mut running = Running::start(&directory);
    let admin = running.admin.clone();
    let ask = |arguments: &[&str]| outrigger(&[arguments, &["--admin", &admin]].concat());
    eventually("it is ready", || code(&ask(&["healthcheck"])) == 0);
    assert!(out(&ask(&["status"])).contains("\"lifecycle\": \"serving\""));
    assert!(out(&ask(&["breaker"])).contains("\"name\": \"app\""));
    assert!(out(&ask(&["breaker", "app", "force-open"])).contains("forced_open"));
    assert!(out(&ask(&["breaker", "app"])).contains("forced_open"));
    assert_eq!(code(&ask(&["breaker", "nobody"])), 64);
    directory.write("policy.yaml", "nonsense: 1\n");
    let refused = ask(&["reload"]);
    assert!(
        code(&refused) == 65 && err(&refused).contains("unknown key `nonsense`"),
        "{}",
        err(&refused)
    );
    let drained = ask(&["drain"]);
    assert_eq!(
        (code(&drained), out(&drained).lines().last()),
        (0, Some("drained")),
        "{}",
        err(&drained)
    );
    assert!(
        out(&drained).contains("nobody knows of other replicas"),
        "{}",
        out(&drained)
    );
    assert!(
        out(&ask(&["status"])).contains("\"lifecycle\": \"drained\""),
        "it goes on for the app"
    );
    assert_eq!(code(&ask(&["healthcheck"])), 1);
    running.signal("-TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn signals_reload_drain_and_end_at_once() {
    let backend = Backend::healthy();
    let directory = Directory::new();
    directory.write(
        "policy.yaml",
        &policy(
            &[backend.address],
            "  lifecycle: {drain: {delay: 0s, quietPeriod: 0s}}\n",
        ),
    );
    let mut running = Running::start(&directory);
    let address: SocketAddr = running.admin.parse().unwrap();
    let generation = || {
        let text = Client::connect(address).get("/api/v1/status").text();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["policy"]["generation"]
            .as_u64()
            .unwrap()
    };
    eventually("the first set is in force", || generation() == 1);
    directory.write(
        "policy.yaml",
        &policy(
            &[backend.address],
            "  lifecycle: {drain: {delay: 1h, timeout: 2h}}\n",
        ),
    );
    running.signal("-HUP");
    eventually("the new set is in force", || generation() == 2);
    running.signal("-TERM");
    eventually("it is unready", || {
        Client::connect(address).get("/readyz").status == 503
    });
    assert!(
        running.child.try_wait().unwrap().is_none(),
        "it drains for an hour"
    );
    running.signal("-TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_demo_shows_a_breakers_life_by_itself() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["demo", "--seconds", "40"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut shown = String::new();
    let mut out = child.stdout.take().unwrap();
    let mut chunk = [0; 4096];
    let story = [
        "a fault begins",
        "closed -> open",
        "the fault ends",
        "open -> half_open",
        "half_open -> closed",
    ];
    while !story.iter().all(|words| shown.contains(words)) {
        let count = out.read(&mut chunk).unwrap();
        assert!(count > 0, "the demo ended with {shown}");
        shown += &String::from_utf8_lossy(&chunk[..count]);
    }
    for words in [
        "curl -s",
        "x-api-key",
        "/fault/errors",
        "/flaky",
        "readyz?verbose",
        "refused ",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

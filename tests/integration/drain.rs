//! Leaving without losing a request.

use outrigger::state::lifecycle::End;

use crate::support::{
    Backend, Client, Sidecar,
    backend::{Gate, ok},
    eventually,
    sidecar::policy,
};

const QUICK: &str = "  lifecycle: {drain: {delay: 100ms, quietPeriod: 20ms, timeout: 20s}}\n";

fn gated() -> (Backend, std::sync::Arc<Gate>) {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.line().contains("/slow") {
                there.pass();
            }
            connection.send(ok("done"));
        }
    });
    (backend, gate)
}

#[test]
fn a_drain_is_unready_at_once_accepts_for_a_while_and_waits_for_what_is_in_flight() {
    let (backend, gate) = gated();
    let mut sidecar = Sidecar::start(&policy(&[backend.address], &QUICK.replace("delay: 100ms", "delay: 500ms")));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let mut idle = sidecar.client();
    assert_eq!(idle.get("/").header("connection"), Some("keep-alive"));
    let (address, admin) = (sidecar.address("inbound"), sidecar.app().admin_address());

    assert_eq!(sidecar.admin("POST", "/api/v1/drain").status, 202);
    eventually("it is unready", || sidecar.admin("GET", "/readyz").status == 503);
    assert_eq!(sidecar.admin("GET", "/livez").status, 200);
    assert_eq!(sidecar.json("/api/v1/status")["lifecycle"], "draining");
    let during = idle.get("/");
    assert_eq!((during.status, during.header("connection")), (200, Some("close")), "callers are told");
    assert_eq!(Client::connect(address).get("/").status, 200, "new connections are taken for a while");
    assert_eq!(sidecar.admin("POST", "/api/v1/drain").status, 202, "asking twice changes nothing");

    eventually("it takes no more connections", || std::net::TcpStream::connect(address).is_err());
    let mut asking = Client::connect(admin);
    assert_eq!(asking.get("/readyz").status, 503, "the admin server still answers");
    let app = sidecar.app.take().unwrap();
    let waiting = std::thread::spawn(move || app.wait());
    assert!(!waiting.is_finished());
    gate.open();
    assert_eq!(slow.answer().text(), "done");
    assert_eq!(waiting.join().unwrap(), End::Drained { is_clean: true });
}

#[test]
fn a_drain_is_bounded() {
    let (backend, _gate) = gated();
    let mut sidecar = Sidecar::start(&policy(&[backend.address], &QUICK.replace("timeout: 20s", "timeout: 150ms")));
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    sidecar.app().drain();
    assert_eq!(sidecar.app.take().unwrap().wait(), End::Drained { is_clean: false });
}

#[test]
fn an_idle_instance_leaves_right_after_the_delay() {
    let backend = Backend::healthy();
    let mut sidecar = Sidecar::start(&policy(&[backend.address], &QUICK.replace("delay: 100ms", "delay: 0s")));
    let mut idle = sidecar.client();
    idle.get("/");
    sidecar.app().drain();
    assert_eq!(sidecar.app.take().unwrap().wait(), End::Drained { is_clean: true });
    assert!(idle.is_closed(), "idle connections are closed");
}

#[test]
fn the_apps_own_calls_go_on_while_its_callers_are_sent_away() {
    let (backend, gate) = gated();
    let outbound = "    - {name: outbound, direction: Outbound, address: \"127.0.0.1:0\"}\n    - {name: inbound,";
    let text = policy(&[backend.address], &QUICK.replace("delay: 100ms", "delay: 0s"))
        .replace("    - {name: inbound,", outbound)
        .replace("  routes:\n", "  routes:\n    - {name: out, listeners: [outbound], backendRefs: [{name: app}]}\n");
    let mut sidecar = Sidecar::start(&text);
    let mut slow = sidecar.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it has arrived", || backend.seen().len() == 1);
    let (inbound, outbound) = (sidecar.address("inbound"), sidecar.address("outbound"));
    sidecar.app().drain();
    eventually("callers are sent away", || std::net::TcpStream::connect(inbound).is_err());
    let answer = Client::connect(outbound).get("/");
    assert_eq!((answer.status, answer.header("connection"), answer.header("x-outrigger-draining")), (200, Some("keep-alive"), None));
    gate.open();
    let last = slow.answer();
    assert_eq!((last.text().as_str(), last.header("x-outrigger-draining")), ("done", Some("1")));
    assert_eq!(sidecar.app.take().unwrap().wait(), End::Drained { is_clean: true });
}

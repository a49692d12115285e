//! Who is refused while the instance is short of something.

use std::time::{Duration, Instant};

use outrigger::resilience::shed::{Level, Signal};

use crate::support::{Backend, Directory, Sidecar, backend::Gate, eventually, sidecar::policy};

/// Under these sections, in a cgroup of its own, so that nothing is heard of the machine that the test runs on.
fn protected(backend: &Backend, sections: &str) -> (Sidecar, Directory) {
    let (directory, cgroup) = (Directory::new(), Directory::new());
    directory.write("policy.yaml", &policy(&[backend.address], sections));
    for (file, text) in [
        ("memory.current", "0"),
        ("memory.max", "1000"),
        ("memory.stat", "inactive_file 0"),
    ] {
        cgroup.write(file, text);
    }
    let path = cgroup.path().to_owned();
    (
        Sidecar::start_in(directory, |settings| settings.cgroup = Some(path)).unwrap(),
        cgroup,
    )
}

const PROTECTION: &str =
    "  protection: {signals: {cpu: {}, memory: {warning: 75, critical: 90}}}\n";

/// Makes the instance believe that its memory has been at this level for long enough.
fn reach((sidecar, cgroup): (&Sidecar, &Directory), value: f64, level: Level) {
    // The watcher, who looks each second, is told the same.
    cgroup.write("memory.current", &format!("{:.0}", value * 1_000.0));
    let protection = &sidecar.app().state().protection;
    let mut now = Instant::now();
    eventually("the policy is followed", || {
        _ = protection.note(Signal::Memory, Some(value), now);
        now += Duration::from_secs(31);
        // At its critical level for as long as it takes until all of the class normal are refused.
        (0..10).for_each(|_| protection.advance());
        protection.level() == level
    });
}

fn ask(sidecar: &Sidecar, class: &str) -> (u16, String) {
    let answer = sidecar
        .client()
        .send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-priority: {class}\r\n\r\n"
        ))
        .answer();
    (answer.status, answer.reason().to_owned())
}

#[test]
fn the_lowest_classes_are_refused_first_and_the_probes_never() {
    let backend = Backend::healthy();
    let (sidecar, cgroup) = protected(&backend, PROTECTION);
    let statuses = || {
        ["critical", "high", "normal", "low", "", "nonsense"].map(|class| ask(&sidecar, class).0)
    };
    assert_eq!(statuses(), [200; 6]);
    reach((&sidecar, &cgroup), 0.8, Level::Warning);
    assert_eq!(statuses(), [200, 200, 200, 503, 200, 200]);
    assert_eq!(ask(&sidecar, "LOW"), (503, "shed:memory:low".to_owned()));
    reach((&sidecar, &cgroup), 0.95, Level::Critical);
    assert_eq!(statuses(), [200, 200, 503, 503, 503, 503]);
    assert_eq!(
        (
            sidecar.admin("GET", "/livez").status,
            sidecar.admin("GET", "/readyz").status,
            sidecar.admin("GET", "/metrics").status
        ),
        (200, 200, 200)
    );
    assert_eq!(
        sidecar.json("/api/v1/limits")["protection"]["level"],
        "critical"
    );
    assert_eq!(sidecar.metric("outrigger_protection_level"), 2.0);
    reach((&sidecar, &cgroup), 0.1, Level::Calm);
    assert_eq!(statuses(), [200; 6]);
}

#[test]
fn in_shadow_mode_it_is_counted_and_all_pass() {
    let backend = Backend::healthy();
    let (sidecar, cgroup) = protected(
        &backend,
        &PROTECTION.replace("{signals", "{mode: Shadow, signals"),
    );
    reach((&sidecar, &cgroup), 0.95, Level::Critical);
    assert_eq!(ask(&sidecar, "low").0, 200);
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="shed"}"#),
        1.0
    );
}

#[test]
fn the_lower_classes_fill_a_limit_only_so_far() {
    let gate = Gate::new();
    let there = gate.clone();
    let backend = Backend::answering(move |_| {
        there.pass();
        crate::support::backend::ok("hello")
    });
    let limits = "  defaults: {connectionLimits: {maxParallelRequests: 10, maxPendingRequests: 0}}\n  protection: {shed: {}}\n";
    let (sidecar, _cgroup) = protected(&backend, limits);
    let in_flight = || {
        sidecar.json("/api/v1/limits")["concurrency"][0]["in_flight"]
            .as_u64()
            .unwrap()
    };
    let mut held = Vec::new();
    let mut enter = |class: &str, places: u64| {
        for place in in_flight() + 1..=places {
            let mut client = sidecar.client();
            client.send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-priority: {class}\r\n\r\n"
            ));
            eventually("it is in", || in_flight() == place);
            held.push(client);
        }
    };
    for (class, places) in [("low", 6), ("normal", 7), ("high", 9)] {
        enter(class, places);
        assert_eq!(ask(&sidecar, class), (503, format!("shed:app:{class}")));
    }
    enter("critical", 10);
    assert_eq!(
        ask(&sidecar, "critical"),
        (503, "concurrency_limit:app".to_owned())
    );
    (0..10).for_each(|_| gate.open());
    for client in &mut held {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn classes_and_their_header_may_be_named_otherwise() {
    let backend = Backend::healthy();
    let shed = "  protection: {signals: {memory: {critical: 50}}, shed: {header: x-tier, classes: [gold, silver, bronze, free]}}\n";
    let (sidecar, cgroup) = protected(&backend, shed);
    reach((&sidecar, &cgroup), 0.6, Level::Critical);
    let ask = |tier: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-tier: {tier}\r\n\r\n"
            ))
            .answer()
            .status
    };
    assert_eq!(
        [
            ask("gold"),
            ask("silver"),
            ask("bronze"),
            ask("free"),
            ask("low")
        ],
        [200, 200, 503, 503, 503]
    );
}

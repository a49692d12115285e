//! Overload protection: requests of lower priority are shed first.

use std::time::{Duration, Instant};

use outrigger::resilience::shed::{OverloadLevel, OverloadSignal};

use crate::support::{ScriptedBackend, Sidecar, TempDirectory, eventually, policy::policy};

/// Starts a sidecar with its own cgroup files, so that the load of the machine has no effect.
fn start_protected(backend: &ScriptedBackend, sections: &str) -> (Sidecar, TempDirectory) {
    let (directory, cgroup) = (TempDirectory::new(), TempDirectory::new());
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
        Sidecar::start_with_settings(directory, |settings| settings.cgroup_path = Some(path))
            .unwrap(),
        cgroup,
    )
}

/// Returns protection by the CPU and the memory. The fields end with a comma.
fn protection_section(fields: &str) -> String {
    format!(
        "  protection: {{{fields}signals: {{cpu: {{}}, memory: {{warning: 75, critical: 90}}}}}}\n"
    )
}

/// Reports this use of the memory until the instance has this overload level.
fn force_level((sidecar, cgroup): (&Sidecar, &TempDirectory), value: f64, level: OverloadLevel) {
    // The background task reads this file each second. It must report the same value.
    cgroup.write("memory.current", &format!("{:.0}", value * 1_000.0));
    let protection = &sidecar.app().state().protection;
    let mut now = Instant::now();
    eventually("the overload level is reached", || {
        _ = protection.record_signal(OverloadSignal::Memory, Some(value), now);
        now += Duration::from_secs(31);
        // At the critical level, ten seconds suffice to shed all requests of the class normal.
        (0..10).for_each(|_| protection.advance_one_second());
        protection.level() == level
    });
}

fn send_with_priority(sidecar: &Sidecar, class: &str) -> (u16, String) {
    let response = sidecar
        .client()
        .send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-priority: {class}\r\n\r\n"
        ))
        .read_response();
    (response.status, response.reason().to_owned())
}

#[test]
fn the_lowest_priority_classes_are_shed_first_and_probes_are_never_shed() {
    let backend = ScriptedBackend::healthy();
    let (sidecar, cgroup) = start_protected(&backend, &protection_section(""));
    let statuses = || {
        ["critical", "high", "normal", "low", "", "nonsense"]
            .map(|class| send_with_priority(&sidecar, class).0)
    };
    assert_eq!(statuses(), [200; 6]);
    force_level((&sidecar, &cgroup), 0.8, OverloadLevel::Warning);
    assert_eq!(statuses(), [200, 200, 200, 503, 200, 200]);
    assert_eq!(
        send_with_priority(&sidecar, "LOW"),
        (503, "shed:memory:low".to_owned())
    );
    force_level((&sidecar, &cgroup), 0.95, OverloadLevel::Critical);
    assert_eq!(statuses(), [200, 200, 503, 503, 503, 503]);
    assert_eq!(
        (
            sidecar.call_admin("GET", "/livez").status,
            sidecar.call_admin("GET", "/readyz").status,
            sidecar.call_admin("GET", "/metrics").status
        ),
        (200, 200, 200)
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/limits")["protection"]["level"],
        "critical"
    );
    assert_eq!(sidecar.metric("outrigger_protection_level"), 2.0);
    force_level((&sidecar, &cgroup), 0.1, OverloadLevel::Normal);
    assert_eq!(statuses(), [200; 6]);
}

#[test]
fn shadow_shedding_is_counted_and_rejects_nothing() {
    let backend = ScriptedBackend::healthy();
    let (sidecar, cgroup) = start_protected(&backend, &protection_section("mode: Shadow, "));
    force_level((&sidecar, &cgroup), 0.95, OverloadLevel::Critical);
    assert_eq!(send_with_priority(&sidecar, "low").0, 200);
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="shed"}"#),
        1.0
    );
}

#[test]
fn lower_priority_classes_may_use_only_part_of_a_concurrency_limit() {
    let (backend, gate) = ScriptedBackend::gated_with("hello");
    let limits = concat!(
        "  defaults: {connectionLimits: {maxParallelRequests: 10, maxPendingRequests: 0}}\n",
        "  protection: {shed: {}}\n",
    );
    let (sidecar, _cgroup) = start_protected(&backend, limits);
    let in_flight = || {
        sidecar.admin_json("/api/v1/limits")["concurrency"][0]["in_flight"]
            .as_u64()
            .unwrap()
    };
    let mut open_clients = Vec::new();
    let mut send_until_in_flight = |class: &str, permits: u64| {
        for expected_in_flight in in_flight() + 1..=permits {
            let mut client = sidecar.client();
            client.send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-priority: {class}\r\n\r\n"
            ));
            eventually("the request is in flight", || {
                in_flight() == expected_in_flight
            });
            open_clients.push(client);
        }
    };
    for (class, permits) in [("low", 6), ("normal", 7), ("high", 9)] {
        send_until_in_flight(class, permits);
        assert_eq!(
            send_with_priority(&sidecar, class),
            (503, format!("shed:app:{class}"))
        );
    }
    send_until_in_flight("critical", 10);
    assert_eq!(
        send_with_priority(&sidecar, "critical"),
        (503, "concurrency_limit:app".to_owned())
    );
    (0..10).for_each(|_| gate.release_one());
    for client in &mut open_clients {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn priority_classes_and_their_header_are_configurable() {
    let backend = ScriptedBackend::healthy();
    let protection = "  protection: {signals: {memory: {critical: 50}}, \
        shed: {header: x-tier, classes: [gold, silver, bronze, free]}}\n";
    let (sidecar, cgroup) = start_protected(&backend, protection);
    force_level((&sidecar, &cgroup), 0.6, OverloadLevel::Critical);
    let status_for_tier = |tier: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-tier: {tier}\r\n\r\n"
            ))
            .read_response()
            .status
    };
    assert_eq!(
        [
            status_for_tier("gold"),
            status_for_tier("silver"),
            status_for_tier("bronze"),
            status_for_tier("free"),
            status_for_tier("low")
        ],
        [200, 200, 503, 503, 503]
    );
}

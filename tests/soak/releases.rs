//! Releases at full load with every clock at its default.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    fleet::{Fleet, FleetTimings},
    policy::{policy, policy_with_backend_fields},
    simulate_delay,
};

/// How long the cold instance warms up.
const WARM_UP_WINDOW: Duration = Duration::from_secs(20);

#[test]
fn twenty_rolling_releases_of_three_instances_at_full_load_fail_no_request_and_repeat_no_payment() {
    let releases: u32 = env::var("SOAK_RELEASES").map_or(20, |text| {
        text.parse().expect("SOAK_RELEASES is a number of releases")
    });
    // The platform is quick to tell; the chats, which would go on for ever, are ended after 15 s.
    let mut fleet = Fleet::start(FleetTimings {
        drain_section: "{}",
        endpoint_update_delay: Duration::from_secs(2),
    });
    let load = fleet.start_load(2);
    for _ in 0..releases {
        fleet.replace_all_instances();
    }
    let reselected: f64 = ["web", "calls"]
        .iter()
        .map(|name| {
            fleet.caller_sidecar.metric(&format!(
                "outrigger_requests_repicked_total{{backend=\"{name}\"}}"
            ))
        })
        .sum();
    let (served, rate) = load.stop_and_verify();
    println!(
        "{releases} releases of three instances: {served} requests and messages, {rate:.0} a second, none failed, none repeated; {reselected} went to another instance unprocessed"
    );
}

#[test]
fn a_warming_instance_never_receives_over_110_percent_of_its_share() {
    for balancer in ["RoundRobin", "LeastRequest", "PeakEwma", "Random"] {
        let (app, warm) = (
            ScriptedBackend::responding_with(|_| ok_response("cold")),
            ["one", "two"].map(|name| ScriptedBackend::responding_with(move |_| ok_response(name))),
        );
        let cold = Sidecar::start(&policy(
            &[app.address],
            "  lifecycle: {warmUp: {window: 20s, minPercent: 10}}\n",
        ));
        let started_at = Instant::now();
        let endpoints = [cold.address("inbound"), warm[0].address, warm[1].address]
            .map(|address| format!("\"{address}\""));
        let caller = Sidecar::start(&policy_with_backend_fields(
            &endpoints,
            &format!("loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        // The news has come before it counts.
        simulate_delay(Duration::from_secs(1));
        let samples: Vec<(Duration, bool)> = thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut client, mut samples) = (caller.client(), Vec::new());
                        while started_at.elapsed() < WARM_UP_WINDOW {
                            let is_cold = client.get("/").text() == "cold";
                            samples.push((started_at.elapsed(), is_cold));
                        }
                        samples
                    })
                })
                .collect();
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect()
        });
        for second in 2..20 {
            let within = samples.iter().filter(|(at, _)| at.as_secs() == second);
            let (all, received) = (
                within.clone().count() as f64,
                within.filter(|(_, is_cold)| *is_cold).count() as f64,
            );
            // At the end of the second, beside two that are warm.
            let factor = ((second + 1) as f64 / WARM_UP_WINDOW.as_secs_f64()).max(0.1);
            let share = factor / (factor + 2.0);
            println!(
                "{balancer}, second {second}: {:.1} % of {all}, {:.1} % on the curve",
                100.0 * received / all,
                100.0 * share
            );
            // What is drawn by lot scatters around its share: four standard deviations.
            let sampling_tolerance = if balancer == "RoundRobin" {
                0.0
            } else {
                4.0 * (all * share * (1.0 - share)).sqrt()
            };
            assert!(
                received <= 1.1 * share * all + sampling_tolerance,
                "{balancer}, second {second}: {received} of {all}, the curve says {:.0}",
                share * all
            );
        }
    }
}

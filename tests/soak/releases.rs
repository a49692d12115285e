//! Releases at full load with every clock at its default.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Sidecar,
    backend::ok,
    fleet::{Clocks, Fleet},
    sidecar::{policy, policy_with},
    take,
};

/// How long the cold instance warms up.
const WINDOW: Duration = Duration::from_secs(20);

#[test]
fn twenty_rolling_releases_of_three_instances_at_full_load_fail_no_request_and_repeat_no_payment() {
    let releases: u32 = env::var("SOAK_RELEASES").map_or(20, |text| {
        text.parse().expect("SOAK_RELEASES is a number of releases")
    });
    // The platform is quick to tell; the chats, which would go on for ever, are ended after 15 s.
    let mut fleet = Fleet::start(Clocks {
        drain: "{}",
        lag: Duration::from_secs(2),
    });
    let load = fleet.load(2);
    for _ in 0..releases {
        fleet.roll();
    }
    let repicked: f64 = ["web", "calls"]
        .iter()
        .map(|name| {
            fleet.caller.metric(&format!(
                "outrigger_requests_repicked_total{{backend=\"{name}\"}}"
            ))
        })
        .sum();
    let (served, rate) = load.end();
    println!(
        "{releases} releases of three instances: {served} requests and messages, {rate:.0} a second, none failed, none repeated; {repicked} went to another instance unprocessed"
    );
}

#[test]
fn a_cold_instance_never_gets_more_than_its_share_on_the_curve_and_a_tenth() {
    for balancer in ["RoundRobin", "LeastRequest", "PeakEwma", "Random"] {
        let (app, warm) = (
            Backend::answering(|_| ok("cold")),
            ["one", "two"].map(|name| Backend::answering(move |_| ok(name))),
        );
        let cold = Sidecar::start(&policy(
            &[app.address],
            "  lifecycle: {warmUp: {window: 20s, minPercent: 10}}\n",
        ));
        let born = Instant::now();
        let endpoints = [cold.address("inbound"), warm[0].address, warm[1].address]
            .map(|address| format!("\"{address}\""));
        let caller = Sidecar::start(&policy_with(
            &endpoints,
            &format!("loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        // The news has come before it counts.
        take(Duration::from_secs(1));
        let seen: Vec<(Duration, bool)> = thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut client, mut seen) = (caller.client(), Vec::new());
                        while born.elapsed() < WINDOW {
                            let is_cold = client.get("/").text() == "cold";
                            seen.push((born.elapsed(), is_cold));
                        }
                        seen
                    })
                })
                .collect();
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect()
        });
        for second in 2..20 {
            let within = seen.iter().filter(|(at, _)| at.as_secs() == second);
            let (all, got) = (
                within.clone().count() as f64,
                within.filter(|(_, is_cold)| *is_cold).count() as f64,
            );
            // At the end of the second, beside two that are warm.
            let factor = ((second + 1) as f64 / WINDOW.as_secs_f64()).max(0.1);
            let share = factor / (factor + 2.0);
            println!(
                "{balancer}, second {second}: {:.1} % of {all}, {:.1} % on the curve",
                100.0 * got / all,
                100.0 * share
            );
            // What is drawn by lot scatters around its share: four standard deviations.
            let by_lot = if balancer == "RoundRobin" {
                0.0
            } else {
                4.0 * (all * share * (1.0 - share)).sqrt()
            };
            assert!(
                got <= 1.1 * share * all + by_lot,
                "{balancer}, second {second}: {got} of {all}, the curve says {:.0}",
                share * all
            );
        }
    }
}

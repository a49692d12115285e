//! Rolling releases and a warm-up under load, with default time settings.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    fleet::{Fleet, FleetTimings},
    policy::{PolicyBuilder, policy},
    simulate_delay,
};

/// Warm-up window of the cold instance.
const WARM_UP_WINDOW: Duration = Duration::from_secs(20);

#[test]
fn twenty_rolling_releases_at_full_load_fail_no_request_and_execute_no_payment_twice() {
    let releases: u32 = env::var("SOAK_RELEASES").map_or(20, |text| {
        text.parse().expect("SOAK_RELEASES is a number of releases")
    });
    // The platform updates its endpoints after 2 s. The drain closes the chats after 15 s.
    let mut fleet = Fleet::start(FleetTimings {
        drain_section: "{}",
        endpoint_update_delay: Duration::from_secs(2),
    });
    let load = fleet.start_load(2);
    for _ in 0..releases {
        fleet.replace_all_instances();
    }
    let reselected: f64 = ["app", "grpc"]
        .iter()
        .map(|name| {
            fleet.client_sidecar.metric(&format!(
                "outrigger_requests_repicked_total{{backend=\"{name}\"}}"
            ))
        })
        .sum();
    let (served, rate) = load.stop_and_verify();
    println!(
        "{releases} releases of three instances: {served} requests and messages, {rate:.0} per \
         second, no failure, no repetition; {reselected} were sent to another instance unprocessed"
    );
}

/// Sends requests until the warm-up ends. Returns the time of each response after `started_at`, and
/// whether the cold instance sent it.
fn sample_responses(sidecar: &Sidecar, started_at: Instant) -> Vec<(Duration, bool)> {
    let (mut client, mut samples) = (sidecar.client(), Vec::new());
    while started_at.elapsed() < WARM_UP_WINDOW {
        let is_cold = client.get("/").text() == "cold";
        samples.push((started_at.elapsed(), is_cold));
    }
    samples
}

/// Asserts that the cold instance received at most 110 % of its share in one second of the warm-up.
fn assert_share_within_ramp(samples: &[(Duration, bool)], second: u64, balancer: &str) {
    let in_second = samples.iter().filter(|(at, _)| at.as_secs() == second);
    let (total, received) = (
        in_second.clone().count() as f64,
        in_second.filter(|(_, is_cold)| *is_cold).count() as f64,
    );
    assert!(
        total > 0.0,
        "{balancer}, second {second}: no request is sent"
    );
    // The factor at the end of the second, beside two warm instances.
    let factor = ((second + 1) as f64 / WARM_UP_WINDOW.as_secs_f64()).max(0.1);
    let share = factor / (factor + 2.0);
    println!(
        "{balancer}, second {second}: {:.1} % of {total}, {:.1} % on the ramp",
        100.0 * received / total,
        100.0 * share
    );
    // A random selection scatters around its share. The tolerance is four standard deviations of
    // the binomial distribution.
    let tolerance = if balancer == "RoundRobin" {
        0.0
    } else {
        4.0 * (total * share * (1.0 - share)).sqrt()
    };
    assert!(
        received <= 1.1 * share * total + tolerance,
        "{balancer}, second {second}: {received} of {total}, the ramp allows {:.0}",
        share * total
    );
}

#[test]
fn a_warming_instance_never_receives_over_110_percent_of_its_share() {
    for balancer in ["RoundRobin", "LeastRequest", "PeakEwma", "Random"] {
        let app = ScriptedBackend::responding_with(|_| ok_response("cold"));
        let warm =
            ["one", "two"].map(|name| ScriptedBackend::responding_with(move |_| ok_response(name)));
        let cold = Sidecar::start(&policy(
            &[app.address],
            "  lifecycle: {warmUp: {window: 20s, minPercent: 10}}\n",
        ));
        let started_at = Instant::now();
        let endpoints = [cold.address("inbound"), warm[0].address, warm[1].address];
        let client_sidecar = Sidecar::start(
            &PolicyBuilder::new(&endpoints)
                .backend_fields(format!("loadBalancer: {{type: {balancer}}}"))
                .build(),
        );
        // The sidecar must learn of the warm-up before the measurement starts.
        simulate_delay(Duration::from_secs(1));
        let samples: Vec<(Duration, bool)> = thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| sample_responses(&client_sidecar, started_at)))
                .collect();
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect()
        });
        for second in 2..20 {
            assert_share_within_ramp(&samples, second, balancer);
        }
    }
}

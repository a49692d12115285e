//! An app at twice its capacity: what it does then, and how long who is let in waits.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::support::{Backend, Sidecar, backend::ok, sidecar::policy, take};

/// Requests that the app works on at once; the others queue there.
const SERVERS: usize = 8;

/// How long it works on each.
const WORK: Duration = Duration::from_millis(20);

/// What it can do, in requests a second.
const CAPACITY: f64 = 400.0;

const CLIENTS: u32 = 200;

fn app() -> Backend {
    let free = Arc::new((Mutex::new(SERVERS), Condvar::new()));
    Backend::answering(move |_| {
        let (count, freed) = &*free;
        let mut servers = freed
            .wait_while(count.lock().unwrap(), |servers| *servers == 0)
            .unwrap();
        *servers -= 1;
        drop(servers);
        take(WORK);
        *count.lock().unwrap() += 1;
        freed.notify_one();
        ok("done")
    })
}

/// Offers so many requests a second for so long; how many a second were answered well in the last half of it, and milliseconds that 99 of 100 of these
/// did not exceed.
fn offer(sidecar: &Sidecar, rate: f64, long: Duration) -> (f64, f64) {
    let (begin, period) = (
        Instant::now(),
        Duration::from_secs_f64(f64::from(CLIENTS) / rate),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut client = sidecar.client();
            thread::spawn(move || {
                let mut next = begin + period * number / CLIENTS;
                let mut took = Vec::new();
                while next < begin + long {
                    take(next.saturating_duration_since(Instant::now()));
                    let began = Instant::now();
                    let is_good = client.get("/").status == 200;
                    if is_good && began > begin + long / 2 {
                        took.push(began.elapsed());
                    }
                    // Who is late does not hurry: a client asks one thing at a time.
                    next = (next + period).max(Instant::now());
                }
                took
            })
        })
        .collect();
    let mut took: Vec<Duration> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    took.sort_unstable();
    (
        took.len() as f64 / (long / 2).as_secs_f64(),
        took[took.len() * 99 / 100].as_secs_f64() * 1e3,
    )
}

#[test]
fn at_twice_its_capacity_an_app_does_nine_tenths_of_its_best_and_by_default_who_is_let_in_waits_at_most_twice_as_long()
 {
    let plain = app();
    let unlimited = Sidecar::start(&policy(&[plain.address], ""));
    let (good, p99) = offer(&unlimited, CAPACITY * 2.0, Duration::from_secs(12));
    println!("without a limit: {good:.0} good answers a second, p99 {p99:.1} ms");
    for algorithm in ["Gradient2", "Vegas", "AIMD"] {
        let app = app();
        let limits = format!(
            "  defaults: {{connectionLimits: {{maxParallelRequests: 400, adaptive: {{algorithm: {algorithm}}}}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[app.address], &limits));
        let (_, calm) = offer(&sidecar, CAPACITY / 2.0, Duration::from_secs(12));
        let (good, p99) = offer(&sidecar, CAPACITY * 2.0, Duration::from_secs(24));
        let limit = &sidecar.json("/api/v1/limits")["concurrency"][0]["max_in_flight"];
        println!(
            "{algorithm}: {good:.0} good answers a second of {CAPACITY}, p99 {p99:.1} ms at twice the capacity and {calm:.1} ms at half of it, limit {limit}"
        );
        // Vegas lets more queue where the limit is small; AIMD looks at failures only, and this app has none.
        assert!(
            good >= 0.9 * CAPACITY && (p99 <= 2.0 * calm || algorithm != "Gradient2"),
            "{algorithm}: {good} a second, {calm} ms, then {p99} ms"
        );
    }
}

//! An app at twice its capacity: what it does then, and how long who is let in waits.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar, backend::ok_response, policy::policy, simulate_delay,
};

/// Requests that the app works on at once; the others queue there.
const APP_WORKERS: usize = 8;

/// How long it works on each.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// What it can do, in requests a second.
const CAPACITY_PER_SECOND: f64 = 400.0;

const CLIENTS: u32 = 200;

fn start_app() -> ScriptedBackend {
    let idle_workers = Arc::new((Mutex::new(APP_WORKERS), Condvar::new()));
    ScriptedBackend::responding_with(move |_| {
        let (count, worker_released) = &*idle_workers;
        let mut idle = worker_released
            .wait_while(count.lock().unwrap(), |idle| *idle == 0)
            .unwrap();
        *idle -= 1;
        drop(idle);
        simulate_delay(SERVICE_TIME);
        *count.lock().unwrap() += 1;
        worker_released.notify_one();
        ok_response("done")
    })
}

/// Offers so many requests a second for so long; how many a second were answered well in the last half of it, and milliseconds that 99 of 100 of these
/// did not exceed.
fn offer_load(sidecar: &Sidecar, rate: f64, duration: Duration) -> (f64, f64) {
    let (begin, period) = (
        Instant::now(),
        Duration::from_secs_f64(f64::from(CLIENTS) / rate),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut client = sidecar.client();
            thread::spawn(move || {
                let mut next = begin + period * number / CLIENTS;
                let mut latencies = Vec::new();
                while next < begin + duration {
                    simulate_delay(next.saturating_duration_since(Instant::now()));
                    let began = Instant::now();
                    let is_good = client.get("/").status == 200;
                    if is_good && began > begin + duration / 2 {
                        latencies.push(began.elapsed());
                    }
                    // Who is late does not hurry: a client asks one thing at a time.
                    next = (next + period).max(Instant::now());
                }
                latencies
            })
        })
        .collect();
    let mut latencies: Vec<Duration> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    latencies.sort_unstable();
    (
        latencies.len() as f64 / (duration / 2).as_secs_f64(),
        latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3,
    )
}

#[test]
fn at_twice_the_capacity_goodput_is_at_least_90_percent_and_gradient2_p99_at_most_doubles() {
    let plain = start_app();
    let unlimited = Sidecar::start(&policy(&[plain.address], ""));
    let (goodput, p99) = offer_load(
        &unlimited,
        CAPACITY_PER_SECOND * 2.0,
        Duration::from_secs(12),
    );
    println!("without a limit: {goodput:.0} good answers a second, p99 {p99:.1} ms");
    for algorithm in ["Gradient2", "Vegas", "AIMD"] {
        let app = start_app();
        let limits = format!(
            "  defaults: {{connectionLimits: {{maxParallelRequests: 400, adaptive: {{algorithm: {algorithm}}}}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[app.address], &limits));
        let (_, baseline_p99) =
            offer_load(&sidecar, CAPACITY_PER_SECOND / 2.0, Duration::from_secs(12));
        let (goodput, p99) =
            offer_load(&sidecar, CAPACITY_PER_SECOND * 2.0, Duration::from_secs(24));
        let limit = &sidecar.admin_json("/api/v1/limits")["concurrency"][0]["max_in_flight"];
        println!(
            "{algorithm}: {goodput:.0} good answers a second of {CAPACITY_PER_SECOND}, p99 {p99:.1} ms at twice the capacity and {baseline_p99:.1} ms at half of it, limit {limit}"
        );
        // Vegas lets more queue where the limit is small; AIMD looks at failures only, and this app has none.
        assert!(
            goodput >= 0.9 * CAPACITY_PER_SECOND
                && (p99 <= 2.0 * baseline_p99 || algorithm != "Gradient2"),
            "{algorithm}: {goodput} a second, {baseline_p99} ms, then {p99} ms"
        );
    }
}

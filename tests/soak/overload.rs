//! An app at twice its capacity: its goodput, and the latency of the admitted requests.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    ScriptedBackend, Sidecar, backend::ok_response, policy::policy, simulate_delay,
};

/// Requests that the app processes at the same time. The others wait in its queue.
const APP_WORKERS: usize = 8;

/// Service time of the app.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// Capacity of the app, in requests per second.
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

/// Result of the second half of a load.
struct LoadResult {
    /// Successful responses per second.
    goodput: f64,
    /// 99th percentile of their latencies, in milliseconds.
    p99_millis: f64,
}

/// Offers `rate` requests per second for `duration`.
fn offer_load(sidecar: &Sidecar, rate: f64, duration: Duration) -> LoadResult {
    let started_at = Instant::now();
    let period = Duration::from_secs_f64(f64::from(CLIENTS) / rate);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut client = sidecar.client();
            thread::spawn(move || {
                let mut next = started_at + period * number / CLIENTS;
                let mut latencies = Vec::new();
                while next < started_at + duration {
                    simulate_delay(next.saturating_duration_since(Instant::now()));
                    let sent_at = Instant::now();
                    let is_success = client.get("/").status == 200;
                    if is_success && sent_at > started_at + duration / 2 {
                        latencies.push(sent_at.elapsed());
                    }
                    // A late client skips requests, because it sends one at a time.
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
    LoadResult {
        goodput: latencies.len() as f64 / (duration / 2).as_secs_f64(),
        p99_millis: latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3,
    }
}

#[test]
fn at_twice_the_capacity_goodput_is_at_least_90_percent_and_gradient2_p99_at_most_doubles() {
    let plain_app = start_app();
    let without_limit = Sidecar::start(&policy(&[plain_app.address], ""));
    let overload = offer_load(
        &without_limit,
        CAPACITY_PER_SECOND * 2.0,
        Duration::from_secs(12),
    );
    println!(
        "without a limit: {:.0} good responses per second, p99 {:.1} ms",
        overload.goodput, overload.p99_millis
    );
    for algorithm in ["Gradient2", "Vegas", "AIMD"] {
        let app = start_app();
        let limits = format!(
            "  defaults:\n    connectionLimits: \
             {{maxParallelRequests: 400, adaptive: {{algorithm: {algorithm}}}}}\n"
        );
        let sidecar = Sidecar::start(&policy(&[app.address], &limits));
        let half_load = offer_load(&sidecar, CAPACITY_PER_SECOND / 2.0, Duration::from_secs(12));
        let overload = offer_load(&sidecar, CAPACITY_PER_SECOND * 2.0, Duration::from_secs(24));
        let (goodput, p99, half_load_p99) =
            (overload.goodput, overload.p99_millis, half_load.p99_millis);
        let limit = &sidecar.admin_json("/api/v1/limits")["concurrency"][0]["max_in_flight"];
        println!(
            "{algorithm}: {goodput:.0} good responses per second of {CAPACITY_PER_SECOND}, \
             p99 {p99:.1} ms at twice the capacity and {half_load_p99:.1} ms at half of it, \
             limit {limit}"
        );
        // Vegas admits a longer queue at a small limit. AIMD reacts to failures only, and this app
        // never fails.
        assert!(
            goodput >= 0.9 * CAPACITY_PER_SECOND
                && (p99 <= 2.0 * half_load_p99 || algorithm != "Gradient2"),
            "{algorithm}: {goodput} per second, p99 {half_load_p99} ms, then {p99} ms"
        );
    }
}

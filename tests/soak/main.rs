//! Promises that take their real time to show, with production time settings.
//!
//! `make soak` runs these tests for minutes. The integration tests check the same promises with
//! short times.
#![expect(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

#[expect(dead_code, reason = "each test binary uses its own part of it")]
#[path = "../integration/support/mod.rs"]
mod support;

mod overload;
mod releases;

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    policy::{policy, policy_with_backend_fields, quoted_addresses},
    simulate_delay,
};

const CLIENTS: usize = 16;

/// How long each client rests after an answer.
const THINK_TIME: Duration = Duration::from_millis(10);

/// How long the apps work on a request.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// One request, as its client saw it.
struct RequestSample {
    /// Since the load began.
    sent_after: Duration,
    latency: Duration,
    app: String,
}

/// Clients that ask one after the other, until it is dropped.
struct SoakLoad {
    started_at: Instant,
    samples: Arc<Mutex<Vec<RequestSample>>>,
    is_stopped: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl SoakLoad {
    fn start(sidecar: &Sidecar) -> Self {
        let (started_at, samples, is_stopped) = (
            Instant::now(),
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let start_client = |_| {
            let (mut client, samples, is_stopped) =
                (sidecar.client(), samples.clone(), is_stopped.clone());
            thread::spawn(move || {
                while !is_stopped.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let app = client.get("/").text();
                    samples.lock().unwrap().push(RequestSample {
                        sent_after: began - started_at,
                        latency: began.elapsed(),
                        app,
                    });
                    simulate_delay(THINK_TIME);
                }
            })
        };
        let clients = (0..CLIENTS).map(start_client).collect();
        Self {
            started_at,
            samples,
            is_stopped,
            clients,
        }
    }

    /// Goes on until so long after the beginning.
    fn run_until(&self, end: Duration) {
        simulate_delay(end.saturating_sub(self.started_at.elapsed()));
    }

    /// The share of an app in what began from one moment to another, in percent.
    fn share_percent(&self, app: &str, from: Duration, to: Duration) -> f64 {
        let samples = self.samples.lock().unwrap();
        let all = || {
            samples
                .iter()
                .filter(|sample| (from..to).contains(&sample.sent_after))
        };
        100.0 * all().filter(|sample| sample.app == app).count() as f64 / all().count() as f64
    }

    /// Milliseconds that 99 of 100 requests did not exceed.
    fn p99_millis(&self, from: Duration, to: Duration) -> f64 {
        let samples = self.samples.lock().unwrap();
        let mut latencies: Vec<_> = samples
            .iter()
            .filter(|sample| (from..to).contains(&sample.sent_after))
            .map(|sample| sample.latency)
            .collect();
        latencies.sort_unstable();
        latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3
    }
}

impl Drop for SoakLoad {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // One that panicked has said so, and its requests are missing.
            _ = client.join();
        }
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Three apps, of which the first can be made to fail, or to take so many milliseconds longer.
fn start_apps() -> (Vec<ScriptedBackend>, Arc<AtomicBool>, Arc<AtomicU64>) {
    let (is_broken, delay) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (shared_is_broken, shared_delay) = (is_broken.clone(), delay.clone());
    let first = ScriptedBackend::responding_with(move |_| {
        simulate_delay(SERVICE_TIME + Duration::from_millis(shared_delay.load(Ordering::Relaxed)));
        if shared_is_broken.load(Ordering::Relaxed) {
            response(500, "first")
        } else {
            ok_response("first")
        }
    });
    let others = ["second", "third"].map(|name| {
        ScriptedBackend::responding_with(move |_| {
            simulate_delay(SERVICE_TIME);
            ok_response(name)
        })
    });
    let mut all = vec![first];
    all.extend(others);
    (all, is_broken, delay)
}

#[test]
fn a_failing_endpoint_receives_at_most_1_percent_after_10_s_and_returns_within_60_s() {
    for balancer in ["LeastRequest", "RoundRobin", "PeakEwma", "Random"] {
        let (apps, is_broken, _) = start_apps();
        let sidecar = Sidecar::start(&policy_with_backend_fields(
            &quoted_addresses(&apps.iter().collect::<Vec<_>>()),
            &format!("outlierDetection: {{}}, loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        let load = SoakLoad::start(&sidecar);
        load.run_until(seconds(5));
        is_broken.store(true, Ordering::Relaxed);
        load.run_until(seconds(25));
        let failing_share = load.share_percent("first", seconds(15), seconds(25));
        is_broken.store(false, Ordering::Relaxed);
        load.run_until(seconds(85));
        let shares: Vec<_> = (25..85)
            .map(|from| load.share_percent("first", seconds(from), seconds(from + 1)))
            .collect();
        let returned_after = shares.iter().position(|share| *share >= 30.0);
        let share_max = shares.iter().copied().fold(0.0, f64::max);
        println!(
            "{balancer}: {failing_share:.2} % while ill, 30 % again {returned_after:?} s after healing, at most {share_max:.0} % in a second"
        );
        assert!(
            failing_share <= 1.0 && returned_after.is_some() && share_max <= 45.0,
            "{balancer}: {failing_share} %, {returned_after:?}, {share_max} %"
        );
    }
}

#[test]
fn an_endpoint_that_is_2_s_slower_does_not_affect_p99_after_15_s() {
    for balancer in ["LeastRequest", "RoundRobin", "PeakEwma", "Random"] {
        let (apps, _, delay) = start_apps();
        let sidecar = Sidecar::start(&policy_with_backend_fields(
            &quoted_addresses(&apps.iter().collect::<Vec<_>>()),
            &format!("outlierDetection: {{}}, loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        let load = SoakLoad::start(&sidecar);
        load.run_until(seconds(15));
        delay.store(2_000, Ordering::Relaxed);
        load.run_until(seconds(45));
        let (before, between, after) = (
            load.p99_millis(seconds(1), seconds(15)),
            load.p99_millis(seconds(15), seconds(30)),
            load.p99_millis(seconds(30), seconds(43)),
        );
        println!(
            "{balancer}: p99 {before:.1} ms before, {between:.1} ms in the first 15 s, {after:.1} ms after them"
        );
        assert!(
            after <= 1.5 * before,
            "{balancer}: {before} ms, then {after} ms"
        );
    }
}

#[test]
fn posts_around_the_idle_timeout_of_the_app_run_exactly_once() {
    let minutes: f64 = env::var("SOAK_MINUTES").map_or(30.0, |text| {
        text.parse().expect("SOAK_MINUTES is a number of minutes")
    });
    let run_counts = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let shared_run_counts = run_counts.clone();
    // Closes what is idle for 5 s, as Node does, and does not announce it.
    let app = ScriptedBackend::start(move |mut connection| {
        connection.close_when_idle_for(seconds(5));
        while let Some(request) = connection.read_request() {
            *shared_run_counts
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok_response("done"));
        }
    });
    let sidecar = Sidecar::start(&policy(&[app.address], ""));
    let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    let clients: Vec<_> = (0..50_u64)
        .map(|client| {
            let mut connection = sidecar.client();
            thread::spawn(move || {
                let mut sent = 0;
                while Instant::now() < end {
                    let post = connection.post("/", &format!("{client} {sent}"));
                    assert_eq!(
                        post.status,
                        200,
                        "post {sent} of client {client}: {}",
                        post.reason()
                    );
                    sent += 1;
                    // Around the moment of the close, and far from it; never the same twice.
                    let gap = [
                        4_995 + sent * 7 % 11,
                        5_000,
                        sent * 37 % 10_000,
                        4_990 + client % 20,
                    ][usize::try_from(sent % 4).unwrap()];
                    simulate_delay(Duration::from_millis(gap));
                }
                sent
            })
        })
        .collect();
    let sent: Vec<u64> = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .collect();
    let run_counts = run_counts.lock().unwrap();
    println!(
        "{} posts in {minutes} minutes on {} connections",
        sent.iter().sum::<u64>(),
        app.connections()
    );
    for (client, sent) in sent.into_iter().enumerate() {
        for number in 0..sent {
            assert_eq!(
                run_counts.get(&format!("{client} {number}")),
                Some(&1),
                "post {number} of client {client}"
            );
        }
    }
}

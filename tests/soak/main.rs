//! Tests that need production time settings.
//!
//! `make soak` runs these tests, for about an hour. The integration tests check the same promises
//! with short times.
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
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    Client, ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    policy::{PolicyBuilder, policy},
    simulate_delay,
};

const CLIENTS: usize = 16;

/// Pause of each client after a response.
const THINK_TIME: Duration = Duration::from_millis(10);

/// Service time of the apps.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// One request, as its client observed it.
struct RequestSample {
    /// Time from the start of the load to the request.
    sent_after: Duration,
    latency: Duration,
    app: String,
}

/// Load of clients that send one request at a time, until drop.
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
                    let sent_at = Instant::now();
                    let app = client.get("/").text();
                    samples.lock().unwrap().push(RequestSample {
                        sent_after: sent_at - started_at,
                        latency: sent_at.elapsed(),
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

    /// Waits until the load has run for `duration`.
    fn run_until(&self, duration: Duration) {
        simulate_delay(duration.saturating_sub(self.started_at.elapsed()));
    }

    /// Returns the share of an app in the requests sent in a period of the load, in percent.
    fn share_percent(&self, app: &str, from: Duration, to: Duration) -> f64 {
        let samples = self.samples.lock().unwrap();
        let all = || {
            samples
                .iter()
                .filter(|sample| (from..to).contains(&sample.sent_after))
        };
        100.0 * all().filter(|sample| sample.app == app).count() as f64 / all().count() as f64
    }

    /// Returns the 99th percentile of the latencies in a period of the load, in milliseconds.
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
            // A client that panicked has printed the reason.
            _ = client.join();
        }
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Starts three apps. The switch makes the first one fail, and the number delays it, in
/// milliseconds.
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

/// Returns a policy with outlier detection and a balancer.
fn policy_with_balancer(apps: &[ScriptedBackend], balancer: &str) -> String {
    let endpoints: Vec<SocketAddr> = apps.iter().map(|app| app.address).collect();
    PolicyBuilder::new(&endpoints)
        .backend_fields("outlierDetection: {}")
        .backend_fields(format!("loadBalancer: {{type: {balancer}}}"))
        .build()
}

#[test]
fn a_failing_endpoint_receives_at_most_1_percent_after_10_s_and_returns_within_60_s() {
    for balancer in ["LeastRequest", "RoundRobin", "PeakEwma", "Random"] {
        let (apps, is_broken, _) = start_apps();
        let sidecar = Sidecar::start(&policy_with_balancer(&apps, balancer));
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
            "{balancer}: {failing_share:.2} % while it fails, \
             30 % again {returned_after:?} s after it recovers, \
             at most {share_max:.0} % in one second"
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
        let sidecar = Sidecar::start(&policy_with_balancer(&apps, balancer));
        let load = SoakLoad::start(&sidecar);
        load.run_until(seconds(15));
        delay.store(2_000, Ordering::Relaxed);
        load.run_until(seconds(45));
        let (before, during, after) = (
            load.p99_millis(seconds(1), seconds(15)),
            load.p99_millis(seconds(15), seconds(30)),
            load.p99_millis(seconds(30), seconds(43)),
        );
        println!(
            "{balancer}: p99 {before:.1} ms before, {during:.1} ms in the first 15 s, \
             {after:.1} ms afterwards"
        );
        assert!(
            after <= 1.5 * before,
            "{balancer}: {before} ms, then {after} ms"
        );
    }
}

/// Number of executions of each request, by its body.
type ExecutionCounts = Arc<Mutex<HashMap<String, usize>>>;

/// Starts an app that closes connections after 5 s without a request, as Node does, and does not
/// announce it.
fn start_closing_app(execution_counts: &ExecutionCounts) -> ScriptedBackend {
    let execution_counts = execution_counts.clone();
    ScriptedBackend::start(move |mut connection| {
        connection.close_when_idle_for(seconds(5));
        while let Some(request) = connection.read_request() {
            *execution_counts
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok_response("done"));
        }
    })
}

/// Sends requests until `end`, with pauses around the idle timeout, and returns their number.
fn send_posts(mut client: Client, client_number: u64, end: Instant) -> u64 {
    let mut sent = 0;
    while Instant::now() < end {
        let response = client.post("/", &format!("{client_number} {sent}"));
        assert_eq!(
            response.status,
            200,
            "post {sent} of client {client_number}: {}",
            response.reason()
        );
        sent += 1;
        // Pauses around the idle timeout and far from it. They vary between requests.
        let pause_millis = [
            4_995 + sent * 7 % 11,
            5_000,
            sent * 37 % 10_000,
            4_990 + client_number % 20,
        ][usize::try_from(sent % 4).unwrap()];
        simulate_delay(Duration::from_millis(pause_millis));
    }
    sent
}

#[test]
fn posts_around_the_idle_timeout_of_the_app_are_executed_exactly_once() {
    let minutes: f64 = env::var("SOAK_MINUTES").map_or(30.0, |text| {
        text.parse().expect("SOAK_MINUTES is a number of minutes")
    });
    let execution_counts = ExecutionCounts::default();
    let app = start_closing_app(&execution_counts);
    let sidecar = Sidecar::start(&policy(&[app.address], ""));
    let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    let clients: Vec<_> = (0..50_u64)
        .map(|number| {
            let client = sidecar.client();
            thread::spawn(move || send_posts(client, number, end))
        })
        .collect();
    let sent: Vec<u64> = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .collect();
    let execution_counts = execution_counts.lock().unwrap();
    println!(
        "{} posts in {minutes} minutes on {} connections",
        sent.iter().sum::<u64>(),
        app.connections()
    );
    for (client, sent) in sent.into_iter().enumerate() {
        for number in 0..sent {
            assert_eq!(
                execution_counts.get(&format!("{client} {number}")),
                Some(&1),
                "post {number} of client {client}"
            );
        }
    }
}

//! What takes its real time to show: every clock at its default, minutes long. `make soak` runs it; the suite has the same promises with
//! short clocks.

#[allow(dead_code)] // Each test binary uses its own part of it.
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
    Backend, Sidecar,
    backend::{answer, ok},
    sidecar::{addresses, policy, policy_with},
};

const CLIENTS: usize = 16;

/// How long each client rests after an answer.
const REST: Duration = Duration::from_millis(10);

/// How long the apps work on a request.
const WORK: Duration = Duration::from_millis(20);

/// One request, as its client saw it.
struct Seen {
    /// Since the load began.
    at: Duration,
    took: Duration,
    by: String,
}

/// Clients that ask one after the other, until it is dropped.
struct Load {
    since: Instant,
    seen: Arc<Mutex<Vec<Seen>>>,
    is_over: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn on(sidecar: &Sidecar) -> Self {
        let (since, seen, is_over) = (
            Instant::now(),
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let ask = |_| {
            let (mut client, seen, is_over) = (sidecar.client(), seen.clone(), is_over.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let by = client.get("/").text();
                    seen.lock().unwrap().push(Seen {
                        at: began - since,
                        took: began.elapsed(),
                        by,
                    });
                    support::take(REST);
                }
            })
        };
        let clients = (0..CLIENTS).map(ask).collect();
        Self {
            since,
            seen,
            is_over,
            clients,
        }
    }

    /// Goes on until so long after the beginning.
    fn run_until(&self, end: Duration) {
        support::take(end.saturating_sub(self.since.elapsed()));
    }

    /// The share of an app in what began from one moment to another, in percent.
    fn share(&self, app: &str, from: Duration, to: Duration) -> f64 {
        let seen = self.seen.lock().unwrap();
        let all = || seen.iter().filter(|one| (from..to).contains(&one.at));
        100.0 * all().filter(|one| one.by == app).count() as f64 / all().count() as f64
    }

    /// Milliseconds that 99 of 100 requests did not exceed.
    fn p99(&self, from: Duration, to: Duration) -> f64 {
        let seen = self.seen.lock().unwrap();
        let mut took: Vec<_> = seen
            .iter()
            .filter(|one| (from..to).contains(&one.at))
            .map(|one| one.took)
            .collect();
        took.sort_unstable();
        took[took.len() * 99 / 100].as_secs_f64() * 1e3
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
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
fn apps() -> (Vec<Backend>, Arc<AtomicBool>, Arc<AtomicU64>) {
    let (is_broken, delay) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (broken_there, delay_there) = (is_broken.clone(), delay.clone());
    let first = Backend::answering(move |_| {
        support::take(WORK + Duration::from_millis(delay_there.load(Ordering::Relaxed)));
        if broken_there.load(Ordering::Relaxed) {
            answer(500, "first")
        } else {
            ok("first")
        }
    });
    let others = ["second", "third"].map(|name| {
        Backend::answering(move |_| {
            support::take(WORK);
            ok(name)
        })
    });
    let mut all = vec![first];
    all.extend(others);
    (all, is_broken, delay)
}

#[test]
fn one_of_three_that_fails_gets_at_most_a_hundredth_within_10_s_and_is_back_within_60_s_without_a_burst()
 {
    for balancer in ["LeastRequest", "RoundRobin", "PeakEwma", "Random"] {
        let (apps, is_broken, _) = apps();
        let sidecar = Sidecar::start(&policy_with(
            &addresses(&apps.iter().collect::<Vec<_>>()),
            &format!("outlierDetection: {{}}, loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        let load = Load::on(&sidecar);
        load.run_until(seconds(5));
        is_broken.store(true, Ordering::Relaxed);
        load.run_until(seconds(25));
        let ill = load.share("first", seconds(15), seconds(25));
        is_broken.store(false, Ordering::Relaxed);
        load.run_until(seconds(85));
        let shares: Vec<_> = (25..85)
            .map(|from| load.share("first", seconds(from), seconds(from + 1)))
            .collect();
        let back = shares.iter().position(|share| *share >= 30.0);
        let most = shares.iter().copied().fold(0.0, f64::max);
        println!(
            "{balancer}: {ill:.2} % while ill, 30 % again {back:?} s after healing, at most {most:.0} % in a second"
        );
        assert!(
            ill <= 1.0 && back.is_some() && most <= 45.0,
            "{balancer}: {ill} %, {back:?}, {most} %"
        );
    }
}

#[test]
fn one_of_three_that_becomes_2_s_slower_does_not_show_in_p99_after_15_s() {
    for balancer in ["LeastRequest", "RoundRobin", "PeakEwma", "Random"] {
        let (apps, _, delay) = apps();
        let sidecar = Sidecar::start(&policy_with(
            &addresses(&apps.iter().collect::<Vec<_>>()),
            &format!("outlierDetection: {{}}, loadBalancer: {{type: {balancer}}}"),
            "",
        ));
        let load = Load::on(&sidecar);
        load.run_until(seconds(15));
        delay.store(2_000, Ordering::Relaxed);
        load.run_until(seconds(45));
        let (before, between, after) = (
            load.p99(seconds(1), seconds(15)),
            load.p99(seconds(15), seconds(30)),
            load.p99(seconds(30), seconds(43)),
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
fn idle_closes_at_mixed_gaps_lose_no_request_and_repeat_no_post() {
    let minutes: f64 = env::var("SOAK_MINUTES").map_or(30.0, |text| {
        text.parse().expect("SOAK_MINUTES is a number of minutes")
    });
    let ran = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let there = ran.clone();
    // Closes what is idle for 5 s, as Node does, and does not announce it.
    let app = Backend::start(move |mut connection| {
        connection.close_when_idle_for(seconds(5));
        while let Some(request) = connection.request() {
            *there
                .lock()
                .unwrap()
                .entry(String::from_utf8_lossy(&request.body).into_owned())
                .or_default() += 1;
            connection.send(ok("done"));
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
                    support::take(Duration::from_millis(gap));
                }
                sent
            })
        })
        .collect();
    let sent: Vec<u64> = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .collect();
    let ran = ran.lock().unwrap();
    println!(
        "{} posts in {minutes} minutes on {} connections",
        sent.iter().sum::<u64>(),
        app.connections()
    );
    for (client, sent) in sent.into_iter().enumerate() {
        for number in 0..sent {
            assert_eq!(
                ran.get(&format!("{client} {number}")),
                Some(&1),
                "post {number} of client {client}"
            );
        }
    }
}

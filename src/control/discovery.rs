//! Finding endpoints: one task per backend whose endpoints are not written in the policy.
//!
//! What was found last stays in force until something else is found: a name server that fails, a name that is gone, a file that is
//! half written change nothing but what is said about them, as an event, a metric and a line of the readiness report. Requests never
//! wait for any of this.

mod dns;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinHandle,
};

use super::watch;
use crate::{
    clock,
    policy::{
        diff, endpoints,
        snapshot::{Discovery, DnsSpec, EndpointSpec},
    },
    state::State,
    telemetry::event::Event,
};

/// How long a failed lookup waits before the next, at first; it doubles up to the longest time an answer is believed.
const RETRY: Duration = Duration::from_millis(500);

/// Finds endpoints, as long as it lives.
#[derive(Debug, Clone)]
pub(super) struct Finder {
    pub(super) state: Arc<State>,
    /// A name server to ask instead of the system's.
    pub(super) name_server: Option<SocketAddr>,
    /// How often a file is looked at, besides the system's notices.
    pub(super) poll_interval: Duration,
    /// Tells that the endpoints in force have changed.
    pub(super) applied: Arc<channel::Sender<u64>>,
}

struct Running {
    discovery: Discovery,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps one task for each backend of the policies in force whose endpoints are to be found.
pub(super) async fn discover(finder: Finder, mut generations: channel::Receiver<u64>) {
    let mut running: HashMap<Arc<str>, Running> = HashMap::new();
    loop {
        let live = finder.state.live.load_full();
        let mut next = HashMap::new();
        for spec in live.backends.iter().map(|backend| &backend.spec).filter(|spec| !matches!(spec.discovery, Discovery::Static(_))) {
            let going_on = running.remove(&spec.name).filter(|running| running.discovery == spec.discovery);
            let start = || Running { discovery: spec.discovery.clone(), task: tokio::spawn(find(finder.clone(), spec.name.clone(), spec.discovery.clone())) };
            next.insert(spec.name.clone(), going_on.unwrap_or_else(start));
        }
        for gone in running.into_keys().filter(|name| !next.contains_key(name)) {
            finder.state.lifecycle.retract(&report_of(&gone));
        }
        running = next;
        if generations.changed().await.is_err() {
            return;
        }
    }
}

async fn find(finder: Finder, backend: Arc<str>, discovery: Discovery) {
    let mut last_fault = None;
    match discovery {
        Discovery::Static(_) => {}
        Discovery::File(path) => follow_file(&finder, &backend, path, &mut last_fault).await,
        Discovery::Dns(spec) => follow_name(&finder, &backend, spec, &mut last_fault).await,
    }
}

async fn follow_file(finder: &Finder, backend: &Arc<str>, path: PathBuf, last_fault: &mut Option<String>) {
    let (changed, mut changes) = mpsc::channel(1);
    // Ends with the channel, which ends with this task.
    tokio::spawn(watch::watch(path.clone(), finder.poll_interval, changed));
    loop {
        let read = endpoints::read(&path).map_err(|faults| faults.to_string());
        finder.found(backend, read, last_fault);
        if changes.recv().await.is_none() {
            return;
        }
    }
}

async fn follow_name(finder: &Finder, backend: &Arc<str>, spec: DnsSpec, last_fault: &mut Option<String>) {
    let mut wait = RETRY;
    loop {
        let now = clock::now();
        let found = match dns::Resolver::new(finder.name_server) {
            Ok(resolver) => resolver.endpoints(&spec).await,
            Err(fault) => Err(fault),
        };
        let next = match &found {
            Ok(found) => {
                wait = RETRY;
                found.valid_until.saturating_duration_since(now).clamp(spec.min_ttl, spec.max_ttl)
            }
            Err(_) => {
                let this = wait.clamp(spec.min_ttl, spec.max_ttl);
                wait = wait.saturating_mul(2).min(spec.max_ttl);
                this
            }
        };
        finder.found(backend, found.map(|found| found.endpoints), last_fault);
        // Drawn a little shorter, so that many sidecars do not ask in step.
        clock::sleep_until(clock::now() + next.mul_f64(1.0 - 0.1 * fastrand::f64())).await;
    }
}

/// What a name stands for, and until when.
#[derive(Debug)]
struct Found {
    endpoints: Vec<EndpointSpec>,
    valid_until: Instant,
}

impl Finder {
    /// Puts what was found in force, or says why nothing was; the same fault again and again only once.
    fn found(&self, backend: &Arc<str>, found: Result<Vec<EndpointSpec>, String>, last_fault: &mut Option<String>) {
        let (state, now) = (&self.state, clock::now());
        let report = report_of(backend);
        match found {
            Ok(mut endpoints) => {
                endpoints.sort();
                let live = state.live.load_full();
                let before = live.backends.iter().find(|known| known.spec.name == *backend).map(|known| known.places.clone()).unwrap_or_default();
                let changes = diff::endpoint_lines(&before, &endpoints);
                let count = endpoints.len();
                if state.discovered(backend, endpoints, now) {
                    state.telemetry.emit(Event::EndpointsChanged { backend: backend.clone(), count, changes });
                    let generation = live.generation;
                    self.applied.send_replace(generation);
                }
                if last_fault.take().is_some() {
                    state.telemetry.emit(Event::DiscoveryRestored { backend: backend.clone() });
                }
                state.lifecycle.report(&report, Ok(format!("{count} known")));
                state.telemetry.metrics.discovery_current(backend, true);
            }
            Err(fault) => {
                state.lifecycle.report(&report, Err(format!("the last ones known stay in force: {fault}")));
                state.telemetry.metrics.discovery_current(backend, false);
                if last_fault.as_ref() != Some(&fault) {
                    state.telemetry.emit(Event::DiscoveryFailed { backend: backend.clone(), why: fault.clone() });
                    *last_fault = Some(fault);
                }
            }
        }
    }
}

/// The name under which readiness reports on a backend's endpoints.
fn report_of(backend: &str) -> String {
    format!("endpoints-of-{backend}")
}

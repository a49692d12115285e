//! Finding endpoints: one task per backend whose endpoints are not written in the policy.
//!
//! What was found last stays in force until something else is found: a name server that fails, a name that is gone, a file that is
//! half written change nothing but what is said about them, as an event, a metric and a line of the readiness report. Requests never
//! wait for any of this; only the instance's readiness waits for the first answer about each backend, whatever it is.

mod dns;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch as channel},
    task::{AbortHandle, JoinSet},
};

use super::watch;
use crate::{
    clock,
    policy::{
        diff, endpoints,
        snapshot::{Discovery, DnsSpec, EndpointSpec},
    },
    state::{State, lifecycle::condition},
    telemetry::event::Event,
};

/// How long a failed lookup waits before the next, at first; it doubles up to the longest time an answer is believed.
const RETRY: Duration = Duration::from_millis(500);

/// So long a file must stay as it is to be taken: whoever writes it in place is done by then, or writes on.
const SETTLED: Duration = Duration::from_millis(100);

/// Finds endpoints, as long as it lives.
#[derive(Debug, Clone)]
pub(super) struct Finder {
    pub(super) state: Arc<State>,
    /// Backends of which nothing was heard yet since the start.
    pub(super) awaited: Arc<Mutex<BTreeSet<Arc<str>>>>,
    /// A name server to ask instead of the system's.
    pub(super) name_server: Option<SocketAddr>,
    /// How often a file is looked at, besides the system's notices.
    pub(super) poll_interval: Duration,
    /// Tells that the endpoints in force have changed.
    pub(super) applied: Arc<channel::Sender<u64>>,
}

struct Running {
    discovery: Discovery,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps one task for each backend of the policies in force whose endpoints are to be found.
pub(super) async fn discover(finder: Finder, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<str>, Running> = HashMap::new();
    let mut is_first = true;
    loop {
        let live = finder.state.live.load_full();
        let mut next = HashMap::new();
        let searched = || {
            live.backends
                .iter()
                .map(|backend| &backend.spec)
                .filter(|spec| !matches!(spec.discovery, Discovery::Static(_)))
        };
        if std::mem::take(&mut is_first) {
            finder.awaits(searched().map(|spec| spec.name.clone()).collect());
        }
        for spec in searched() {
            let going_on = running
                .remove(&spec.name)
                .filter(|running| running.discovery == spec.discovery);
            let start = || Running {
                discovery: spec.discovery.clone(),
                task: tasks.spawn(find(
                    finder.clone(),
                    spec.name.clone(),
                    spec.discovery.clone(),
                )),
            };
            next.insert(spec.name.clone(), going_on.unwrap_or_else(start));
        }
        for gone in running.into_keys().filter(|name| !next.contains_key(name)) {
            finder.state.lifecycle.retract(&report_of(&gone));
            finder.state.telemetry.metrics.forget_discovery(&gone);
            finder.heard_of(&gone);
        }
        running = next;
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
}

async fn find(finder: Finder, backend: Arc<str>, discovery: Discovery) {
    let (mut last_fault, source) = (None, discovery.clone());
    let found = |found: Result<_, String>| finder.found(&backend, &source, found, &mut last_fault);
    match discovery {
        Discovery::Static(_) => {}
        Discovery::File(path) => follow_file(&finder, path, found).await,
        Discovery::Dns(spec) => follow_name(&finder, spec, found).await,
    }
}

async fn follow_file(
    finder: &Finder,
    path: PathBuf,
    mut found: impl FnMut(Result<Vec<EndpointSpec>, String>),
) {
    let (changed, mut changes) = mpsc::channel(1);
    // Ends with the channel, which ends with this task.
    tokio::spawn(watch::watch(path.clone(), finder.poll_interval, changed));
    loop {
        found(settled(|| read(&path)).await);
        if changes.recv().await.is_none() {
            return;
        }
    }
}

fn read(path: &Path) -> Result<Vec<EndpointSpec>, String> {
    endpoints::read(path).map_err(|faults| faults.to_string())
}

/// What two readings in a row agree on: the beginning of a file that is being written may look like a whole one.
async fn settled<T: PartialEq>(mut read: impl FnMut() -> T) -> T {
    let mut last = read();
    loop {
        clock::sleep(SETTLED).await;
        let now = read();
        if now == last {
            return now;
        }
        last = now;
    }
}

async fn follow_name(
    finder: &Finder,
    spec: DnsSpec,
    mut found: impl FnMut(Result<Vec<EndpointSpec>, String>),
) {
    let (mut wait, mut families) = (RETRY, dns::Families::default());
    loop {
        let now = clock::now();
        let answer = match dns::Resolver::new(finder.name_server) {
            Ok(resolver) => resolver.endpoints(&spec, &mut families).await,
            Err(fault) => Err(fault),
        };
        let next = match &answer {
            Ok(answer) => {
                wait = RETRY;
                answer
                    .valid_until
                    .saturating_duration_since(now)
                    .clamp(spec.min_ttl, spec.max_ttl)
            }
            Err(_) => {
                let this = wait.min(spec.max_ttl);
                wait = wait.saturating_mul(2).min(spec.max_ttl);
                this
            }
        };
        found(answer.map(|answer| answer.endpoints));
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
    fn found(
        &self,
        backend: &Arc<str>,
        source: &Discovery,
        found: Result<Vec<EndpointSpec>, String>,
        last_fault: &mut Option<String>,
    ) {
        let (state, now) = (&self.state, clock::now());
        let report = report_of(backend);
        match found {
            Ok(mut endpoints) => {
                endpoints.sort();
                let live = state.live.load_full();
                let count = endpoints.len();
                if state.discovered(backend, source, endpoints.clone(), now) {
                    let before = live
                        .backends
                        .iter()
                        .find(|known| known.spec.name == *backend)
                        .map(|known| known.places.as_slice())
                        .unwrap_or_default();
                    let changes = diff::endpoint_lines(before, &endpoints);
                    state.telemetry.emit(Event::EndpointsChanged {
                        backend: backend.clone(),
                        count,
                        changes,
                    });
                    let generation = live.generation;
                    self.applied.send_replace(generation);
                }
                if last_fault.take().is_some() {
                    state.telemetry.emit(Event::DiscoveryRestored {
                        backend: backend.clone(),
                    });
                }
                state
                    .lifecycle
                    .report(&report, Ok(format!("{count} known")));
                state.telemetry.metrics.discovery_current(backend, true);
            }
            Err(fault) => {
                state.lifecycle.report(
                    &report,
                    Err(format!("the last ones known stay in force: {fault}")),
                );
                state.telemetry.metrics.discovery_current(backend, false);
                if last_fault.as_ref() != Some(&fault) {
                    state.telemetry.emit(Event::DiscoveryFailed {
                        backend: backend.clone(),
                        why: fault.clone(),
                    });
                    *last_fault = Some(fault);
                }
            }
        }
        self.heard_of(backend);
    }

    /// Readiness waits for the first answer about these.
    fn awaits(&self, backends: BTreeSet<Arc<str>>) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = backends;
        self.heard_of("");
    }

    /// There was an answer about a backend, be it that there is none.
    fn heard_of(&self, backend: &str) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.remove(backend);
        let names: Vec<&str> = awaited.iter().map(|name| &**name).collect();
        let why = if names.is_empty() {
            "all backends were looked for".to_owned()
        } else {
            format!("the first answer is awaited about {}", names.join(", "))
        };
        self.state.lifecycle.set(
            condition::ENDPOINTS,
            names.is_empty(),
            why,
            clock::now(),
            &self.state.telemetry,
        );
    }
}

/// The name under which readiness reports on a backend's endpoints.
fn report_of(backend: &str) -> String {
    format!("endpoints-of-{backend}")
}

#[cfg(test)]
mod tests {
    use super::settled;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_taken_when_it_has_stopped_growing() {
        let mut readings = [
            "- 10.0.0.1:80",
            "- 10.0.0.1:8080\n",
            "- 10.0.0.1:8080\n- 10",
            "- 10.0.0.1:8080\n- 10.0.0.2:8080\n",
            "- 10.0.0.1:8080\n- 10.0.0.2:8080\n",
        ]
        .into_iter();
        assert_eq!(
            settled(|| readings.next()).await,
            Some("- 10.0.0.1:8080\n- 10.0.0.2:8080\n")
        );
    }
}

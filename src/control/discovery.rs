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

use crate::{
    clock,
    control::file_watch,
    policy::{
        diff, endpoints,
        snapshot::{Discovery, DnsSpec, EndpointSpec},
    },
    state::{State, instance::lifecycle::condition},
    telemetry::event::Event,
};

/// How long a failed lookup waits before the next, at first; it doubles up to the longest time an answer is believed.
const INITIAL_RETRY_DELAY: Duration = Duration::from_millis(500);

/// So long a file must stay as it is to be taken: whoever writes it in place is done by then, or writes on.
const FILE_STABLE_TIME: Duration = Duration::from_millis(100);

/// Finds endpoints, as long as it lives.
#[derive(Debug, Clone)]
pub(super) struct DiscoveryContext {
    pub(super) state: Arc<State>,
    /// Backends of which nothing was heard yet since the start.
    pub(super) pending_backends: Arc<Mutex<BTreeSet<Arc<str>>>>,
    /// A name server to ask instead of the system's.
    pub(super) name_server: Option<SocketAddr>,
    /// How often a file is looked at, besides the system's notices.
    pub(super) poll_interval: Duration,
    /// Tells that the endpoints in force have changed.
    pub(super) generation_sender: Arc<channel::Sender<u64>>,
}

struct RunningDiscovery {
    discovery: Discovery,
    task: AbortHandle,
}

impl Drop for RunningDiscovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps one task for each backend of the policies in force whose endpoints are to be found.
pub(super) async fn run_discovery(
    context: DiscoveryContext,
    mut generations: channel::Receiver<u64>,
) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<str>, RunningDiscovery> = HashMap::new();
    let mut is_first = true;
    loop {
        let active_policy = context.state.active_policy.load_full();
        let mut next = HashMap::new();
        let dynamic_backends = || {
            active_policy
                .backends
                .iter()
                .map(|backend| &backend.spec)
                .filter(|spec| !matches!(spec.discovery, Discovery::Static(_)))
        };
        if std::mem::take(&mut is_first) {
            context.set_pending(dynamic_backends().map(|spec| spec.name.clone()).collect());
        }
        for spec in dynamic_backends() {
            let unchanged = running
                .remove(&spec.name)
                .filter(|running| running.discovery == spec.discovery);
            let start = || RunningDiscovery {
                discovery: spec.discovery.clone(),
                task: tasks.spawn(discover_backend(
                    context.clone(),
                    spec.name.clone(),
                    spec.discovery.clone(),
                )),
            };
            next.insert(spec.name.clone(), unchanged.unwrap_or_else(start));
        }
        for gone in running.into_keys().filter(|name| !next.contains_key(name)) {
            context.state.lifecycle.remove_report(&report_name(&gone));
            context
                .state
                .telemetry
                .metrics
                .clear_discovery_current(&gone);
            context.mark_resolved(&gone);
        }
        running = next;
        if !super::wait_for_policy_change(&mut generations, &mut tasks).await {
            return;
        }
    }
}

async fn discover_backend(context: DiscoveryContext, backend: Arc<str>, discovery: Discovery) {
    let (mut last_fault, source) = (None, discovery.clone());
    let found =
        |found: Result<_, String>| context.record_result(&backend, &source, found, &mut last_fault);
    match discovery {
        Discovery::Static(_) => {}
        Discovery::File(path) => watch_file(&context, path, found).await,
        Discovery::Dns(spec) => poll_dns(&context, spec, found).await,
    }
}

async fn watch_file(
    context: &DiscoveryContext,
    path: PathBuf,
    mut found: impl FnMut(Result<Vec<EndpointSpec>, String>),
) {
    let (changed, mut changes) = mpsc::channel(1);
    // Ends with the channel, which ends with this task.
    tokio::spawn(file_watch::watch_path(
        path.clone(),
        context.poll_interval,
        changed,
    ));
    loop {
        found(read_until_stable(|| read_endpoints_file(&path)).await);
        if changes.recv().await.is_none() {
            return;
        }
    }
}

fn read_endpoints_file(path: &Path) -> Result<Vec<EndpointSpec>, String> {
    endpoints::read_file(path).map_err(|faults| faults.to_string())
}

/// What two readings in a row agree on: the beginning of a file that is being written may look like a whole one.
async fn read_until_stable<T: PartialEq>(mut read: impl FnMut() -> T) -> T {
    let mut last = read();
    loop {
        clock::sleep(FILE_STABLE_TIME).await;
        let now = read();
        if now == last {
            return now;
        }
        last = now;
    }
}

async fn poll_dns(
    context: &DiscoveryContext,
    spec: DnsSpec,
    mut found: impl FnMut(Result<Vec<EndpointSpec>, String>),
) {
    let (mut retry_delay, mut families) =
        (INITIAL_RETRY_DELAY, dns::SeenAddressFamilies::default());
    loop {
        let now = clock::now();
        let resolved = match dns::Resolver::new(context.name_server) {
            Ok(resolver) => resolver.resolve_endpoints(&spec, &mut families).await,
            Err(fault) => Err(fault),
        };
        let next = match &resolved {
            Ok(resolved) => {
                retry_delay = INITIAL_RETRY_DELAY;
                resolved
                    .valid_until
                    .saturating_duration_since(now)
                    .clamp(spec.min_ttl, spec.max_ttl)
            }
            Err(_) => {
                let this = retry_delay.min(spec.max_ttl);
                retry_delay = retry_delay.saturating_mul(2).min(spec.max_ttl);
                this
            }
        };
        found(resolved.map(|resolved| resolved.endpoints));
        // Drawn a little shorter, so that many sidecars do not ask in step.
        clock::sleep_until(clock::now() + next.mul_f64(1.0 - 0.1 * fastrand::f64())).await;
    }
}

/// What a name stands for, and until when.
#[derive(Debug)]
struct ResolvedEndpoints {
    endpoints: Vec<EndpointSpec>,
    valid_until: Instant,
}

impl DiscoveryContext {
    /// Puts what was found in force, or says why nothing was; the same fault again and again only once.
    fn record_result(
        &self,
        backend: &Arc<str>,
        source: &Discovery,
        found: Result<Vec<EndpointSpec>, String>,
        last_fault: &mut Option<String>,
    ) {
        let (state, now) = (&self.state, clock::now());
        let report = report_name(backend);
        match found {
            Ok(mut endpoints) => {
                endpoints.sort();
                let active_policy = state.active_policy.load_full();
                let count = endpoints.len();
                if state.apply_discovered_endpoints(backend, source, endpoints.clone(), now) {
                    let before = active_policy
                        .backends
                        .iter()
                        .find(|known| known.spec.name == *backend)
                        .map(|known| known.endpoint_specs.as_slice())
                        .unwrap_or_default();
                    let changes = diff::describe_endpoint_changes(before, &endpoints);
                    state.telemetry.emit(Event::EndpointsChanged {
                        backend: backend.clone(),
                        count,
                        changes,
                    });
                    let generation = active_policy.generation;
                    self.generation_sender.send_replace(generation);
                }
                if last_fault.take().is_some() {
                    state.telemetry.emit(Event::DiscoveryRestored {
                        backend: backend.clone(),
                    });
                }
                state
                    .lifecycle
                    .set_report(&report, Ok(format!("{count} known")));
                state.telemetry.metrics.set_discovery_current(backend, true);
            }
            Err(fault) => {
                state.lifecycle.set_report(
                    &report,
                    Err(format!("the last ones known stay in force: {fault}")),
                );
                state
                    .telemetry
                    .metrics
                    .set_discovery_current(backend, false);
                if last_fault.as_ref() != Some(&fault) {
                    state.telemetry.emit(Event::DiscoveryFailed {
                        backend: backend.clone(),
                        reason: fault.clone(),
                    });
                    *last_fault = Some(fault);
                }
            }
        }
        self.mark_resolved(backend);
    }

    /// Readiness waits for the first answer about these.
    fn set_pending(&self, backends: BTreeSet<Arc<str>>) {
        *self
            .pending_backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = backends;
        self.mark_resolved("");
    }

    /// There was an answer about a backend, be it that there is none.
    fn mark_resolved(&self, backend: &str) {
        let mut pending_backends = self
            .pending_backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pending_backends.remove(backend);
        let names: Vec<&str> = pending_backends.iter().map(|name| &**name).collect();
        let reason = if names.is_empty() {
            "all backends were looked for".to_owned()
        } else {
            format!("the first answer is awaited about {}", names.join(", "))
        };
        self.state.lifecycle.set_condition(
            condition::ENDPOINTS,
            names.is_empty(),
            reason,
            clock::now(),
            &self.state.telemetry,
        );
    }
}

/// The name under which readiness reports on a backend's endpoints.
fn report_name(backend: &str) -> String {
    format!("endpoints-of-{backend}")
}

#[cfg(test)]
mod tests;

//! Endpoint discovery: one task for each backend whose endpoints come from DNS or from a file.
//!
//! This module decides when endpoints are looked up again and when a result is activated. The
//! last valid result stays active until another one replaces it. A failing name server, a
//! missing name or an incomplete file causes only an event, a metric and a readiness report.
//! Requests never wait for discovery. Readiness of the instance waits for the first result for
//! each backend of the first policy set, success or failure. The module does not know whether
//! an endpoint is healthy.

mod dns;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch as channel},
    task::{AbortHandle, JoinSet},
};

use crate::{
    clock,
    control::{file_watch, policy_change},
    policy::{
        diff, endpoints,
        snapshot::{Discovery, DnsSpec, EndpointSpec},
    },
    state::{State, instance::lifecycle::condition},
    telemetry::event::Event,
};

/// Delay after the first failed DNS lookup. It doubles with each further failure, up to the
/// `max_ttl` of the policy.
const INITIAL_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Time for which the content of an endpoints file must be unchanged before it is used. It
/// filters out files that are still being written.
const FILE_STABLE_TIME: Duration = Duration::from_millis(100);

/// Dependencies that all discovery tasks share.
#[derive(Debug, Clone)]
pub(super) struct DiscoveryContext {
    pub(super) state: Arc<State>,
    /// Backends without a first result since startup. The lock guards the set and the readiness
    /// condition that is derived from it.
    pub(super) pending_backends: Arc<Mutex<BTreeSet<Arc<str>>>>,
    /// Name server for DNS discovery; `None` uses the system configuration.
    pub(super) name_server: Option<SocketAddr>,
    /// Time between two polls of an endpoints file. File system events trigger a read earlier.
    pub(super) poll_interval: Duration,
    /// Notifies the other tasks that the active endpoints have changed.
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

/// Runs one discovery task for each backend with dynamic endpoints, and follows policy changes.
///
/// Returns only if a discovery task panicked or the policy can no longer change.
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
        if !policy_change::wait_for_policy_change(&mut generations, &mut tasks).await {
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
    // The watcher ends when its receiver `changes` is dropped together with this task.
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

/// Reads until two consecutive reads return the same value, and returns it. A file that is
/// being written can look complete, so one read is not enough.
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
        // Up to 10 % of negative jitter keeps many sidecars from querying in step.
        clock::sleep_until(clock::now() + next.mul_f64(1.0 - 0.1 * fastrand::f64())).await;
    }
}

impl DiscoveryContext {
    /// Activates discovered endpoints, or reports the failure. Consecutive identical failures
    /// emit one event.
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
                        .find_backend(backend)
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
                    Err(format!("the last valid endpoints stay active: {fault}")),
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

    /// Sets the backends whose first result readiness waits for.
    fn set_pending(&self, backends: BTreeSet<Arc<str>>) {
        *self.pending_backends.lock() = backends;
        self.mark_resolved("");
    }

    /// Removes a backend from the pending set after its first result, success or failure, and
    /// updates the readiness condition.
    fn mark_resolved(&self, backend: &str) {
        let mut pending_backends = self.pending_backends.lock();
        pending_backends.remove(backend);
        let names: Vec<&str> = pending_backends.iter().map(|name| &**name).collect();
        let reason = if names.is_empty() {
            "no backend waits for its first discovery result".to_owned()
        } else {
            format!(
                "the first endpoints of {} are not known yet",
                names.join(", ")
            )
        };
        self.state.lifecycle.set_condition(
            condition::ENDPOINTS,
            names.is_empty(),
            reason,
            clock::now(),
        );
    }
}

/// Returns the name of the readiness report for the endpoints of a backend.
fn report_name(backend: &str) -> String {
    format!("endpoints-of-{backend}")
}

#[cfg(test)]
mod tests;

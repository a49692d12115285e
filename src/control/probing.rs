//! Active health checks: one task per endpoint that is to be checked.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::http_call;
use crate::{
    clock,
    policy::snapshot::{Address, CheckSpec, LifecycleSpec, ProbeSpec},
    resilience::health::Health,
    state::{State, endpoint::EndpointState, lifecycle::condition},
    telemetry::event::Event,
};

/// What is read of an answer in search of the expected words.
const MAX_BODY: usize = 4 << 10;

struct Running {
    spec: CheckSpec,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps one checking task for each endpoint of the policies in force.
pub(super) async fn probe(state: Arc<State>, mut generations: watch::Receiver<u64>) {
    let mut running: HashMap<u64, Running> = HashMap::new();
    loop {
        let live = state.live.load_full();
        let mut next = HashMap::new();
        for backend in &live.backends {
            let Some(spec) = &backend.spec.check else { continue };
            for endpoint in &backend.endpoints {
                let going_on = running.remove(&endpoint.id).filter(|running| running.spec == *spec);
                let task = going_on.unwrap_or_else(|| Running {
                    spec: spec.clone(),
                    task: tokio::spawn(check_for_ever(state.clone(), backend.spec.name.clone(), endpoint.clone(), spec.clone())),
                });
                next.insert(endpoint.id, task);
            }
        }
        running = next;
        if generations.changed().await.is_err() {
            return;
        }
    }
}

async fn check_for_ever(state: Arc<State>, backend: Arc<str>, endpoint: Arc<EndpointState>, spec: CheckSpec) {
    loop {
        let began = clock::now();
        let result = check(&endpoint, &spec).await;
        if let Some(health) = endpoint.checked(&spec.thresholds, &result, clock::now()) {
            let why = result.clone().err().unwrap_or_else(|| "the check passed".to_owned());
            state.telemetry.emit(Event::HealthChanged { backend: backend.clone(), endpoint: endpoint.label.clone(), health, why });
        }
        let now = clock::now();
        review(&state, &backend);
        // Drawn around its value, so that many sidecars do not check in step.
        let interval = interval(&spec, endpoint.health(), result.is_ok());
        let next = now.max(began + interval.mul_f64(1.0 + spec.jitter * (2.0 * fastrand::f64() - 1.0)));
        let ready_at = registration(&state, &backend, now);
        if let Some(ready_at) = ready_at.filter(|ready_at| *ready_at < next) {
            clock::sleep_until(ready_at).await;
            registration(&state, &backend, clock::now());
        }
        clock::sleep_until(next).await;
    }
}

/// How long until the next check: sooner where a result differs from what is known, so that a change is confirmed soon.
fn interval(spec: &CheckSpec, health: Health, has_passed: bool) -> Duration {
    match (health, has_passed) {
        (Health::Healthy, false) | (Health::Unhealthy, true) | (Health::Unknown, _) => spec.edge_interval,
        (Health::Unhealthy, false) => spec.unhealthy_interval,
        (Health::Healthy, true) => spec.interval,
    }
}

/// Looks anew who of a backend may be picked.
fn review(state: &State, backend: &Arc<str>) {
    let live = state.live.load();
    if let Some(found) = live.backends.iter().find(|other| other.spec.name == *backend) {
        found.review();
    }
}

/// Readiness by the required backend: any of its endpoints is healthy, and at the start its check has passed so many times in a
/// row, and then so long ago. Says when that will be, if it is only a matter of time.
fn registration(state: &State, backend: &Arc<str>, now: Instant) -> Option<Instant> {
    let live = state.live.load();
    let LifecycleSpec { require_backend, startup_delay, success_threshold, .. } = live.snapshot.lifecycle;
    let required = &live.backends[require_backend?];
    if required.spec.name != *backend {
        return None;
    }
    let set = |is_met, why: String| state.lifecycle.set(condition::APP, is_met, why, now, &state.telemetry);
    let healthy = required.endpoints.iter().filter(|endpoint| endpoint.health() == Health::Healthy);
    let Some(passes) = healthy.map(|endpoint| endpoint.check_summary().0).max() else {
        state.lifecycle.unregister();
        let results: Vec<String> = required.endpoints.iter().map(|endpoint| format!("{} {}", endpoint.label, endpoint.check_summary().1)).collect();
        set(false, format!("the check of `{backend}`: {}", results.join(", ")));
        return None;
    };
    match state.lifecycle.register(passes, success_threshold, startup_delay, now) {
        Ok(()) => set(true, format!("the check of `{backend}` passes")),
        Err(None) => set(false, format!("the check of `{backend}` has passed {passes} of {success_threshold} times")),
        Err(Some(ready_at)) => {
            set(false, format!("the check of `{backend}` has passed, waiting for the startup delay of {startup_delay:?}"));
            return Some(ready_at);
        }
    }
    None
}

async fn check(endpoint: &EndpointState, spec: &CheckSpec) -> Result<(), String> {
    match &spec.probe {
        ProbeSpec::Tcp => connect(endpoint, spec.timeout).await,
        ProbeSpec::Http { path, host, expected, body } => {
            let head = http_call::head("GET", path, host.as_deref().unwrap_or(endpoint.authority()), &Bytes::new())?;
            let wanted = body.as_deref().unwrap_or_default().as_bytes();
            let max_body = if wanted.is_empty() { 0 } else { MAX_BODY };
            let answer = http_call::call(&endpoint.address, head, Bytes::new(), max_body, spec.timeout).await?;
            let is_in = wanted.is_empty() || answer.body.windows(wanted.len()).any(|part| part == wanted);
            match (expected.contains(answer.status), is_in) {
                (true, true) => Ok(()),
                (true, false) => Err("the expected words are not in the body".to_owned()),
                (false, _) => Err(format!("status {}", answer.status)),
            }
        }
    }
}

async fn connect(endpoint: &EndpointState, timeout: Duration) -> Result<(), String> {
    let connecting = async {
        match &endpoint.address {
            Address::Tcp(address) => TcpStream::connect(address).await.map(drop),
            Address::Unix(path) => UnixStream::connect(&**path).await.map(drop),
        }
    };
    match clock::within(Some(timeout), connecting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("connect: {error}")),
        Err(clock::Elapsed) => Err(format!("no connection within {timeout:?}")),
    }
}

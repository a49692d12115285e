//! Active health checks: one task per endpoint that is to be checked.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{dial::dial, gates, grpc_check, http_call, http2_call};
use crate::{
    clock,
    policy::snapshot::{BackendSpec, CheckSpec, ClientTlsSpec, LifecycleSpec, ProbeSpec, Protocol},
    resilience::health::Health,
    state::{
        State,
        endpoint::{EndpointState, presence::Told},
        lifecycle::condition,
    },
    telemetry::event::Event,
};

/// What is read of an answer in search of the expected words.
pub(super) const MAX_BODY: usize = 4 << 10;

/// How an endpoint is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    protocol: Protocol,
    tls: Option<ClientTlsSpec>,
}

impl Way {
    /// To the endpoints of a backend.
    pub(super) fn to(backend: &BackendSpec) -> Self {
        Self {
            protocol: backend.protocol,
            tls: backend.tls.clone(),
        }
    }
}

/// What an answer to a check says.
pub(super) struct Answer {
    pub(super) status: u16,
    head: HeaderMap,
    pub(super) body: Bytes,
}

struct Running {
    spec: CheckSpec,
    way: Way,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The first checks of so many endpoints are spread over so long for each of them, up to a second: else a start would dial all at once.
const SPREAD: Duration = Duration::from_millis(1);
const MAX_SPREAD: Duration = Duration::from_secs(1);

/// Keeps one checking task for each endpoint of the policies in force.
pub(super) async fn probe(state: Arc<State>, mut generations: watch::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<u64, Running> = HashMap::new();
    loop {
        let live = state.live.load_full();
        let mut next = HashMap::new();
        for backend in &live.backends {
            let Some(spec) = &backend.spec.check else {
                continue;
            };
            let way = Way::to(&backend.spec);
            let spread = SPREAD
                .saturating_mul(u32::try_from(backend.endpoints.len()).unwrap_or(u32::MAX))
                .min(MAX_SPREAD);
            for endpoint in &backend.endpoints {
                let going_on = running
                    .remove(&endpoint.id)
                    .filter(|running| running.spec == *spec && running.way == way);
                let task = going_on.unwrap_or_else(|| Running {
                    spec: spec.clone(),
                    way: way.clone(),
                    task: tasks.spawn(check_for_ever(
                        state.clone(),
                        backend.spec.name.clone(),
                        endpoint.clone(),
                        spec.clone(),
                        way.clone(),
                        spread,
                    )),
                });
                next.insert(endpoint.id, task);
            }
        }
        running = next;
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
}

async fn check_for_ever(
    state: Arc<State>,
    backend: Arc<str>,
    endpoint: Arc<EndpointState>,
    spec: CheckSpec,
    way: Way,
    spread: Duration,
) {
    clock::sleep(spread.mul_f64(fastrand::f64())).await;
    loop {
        let began = clock::now();
        let mut head = None;
        let checked = clock::within(
            Some(spec.timeout),
            check(&state, &endpoint, &spec, &way, &mut head),
        )
        .await;
        let result =
            checked.unwrap_or_else(|_| Err(format!("no answer within {:?}", spec.timeout)));
        let is_leaving = head.is_some_and(|head| follow(&state, &backend, &endpoint, &head, began));
        // Who leaves may say no already; that is no illness.
        if (result.is_ok() || !is_leaving)
            && let Some(health) = endpoint.checked(&spec.thresholds, &result, clock::now())
        {
            let why = result
                .clone()
                .err()
                .unwrap_or_else(|| "the check passed".to_owned());
            state.telemetry.emit(Event::HealthChanged {
                backend: backend.clone(),
                endpoint: endpoint.label.clone(),
                health,
                why,
            });
            review(&state, &backend);
            gates::look(&state);
        }
        let now = clock::now();
        // Drawn around its value, so that many sidecars do not check in step.
        let interval = interval(&spec, endpoint.health(), result.is_ok());
        let next =
            now.max(began + interval.mul_f64(1.0 + spec.jitter * (2.0 * fastrand::f64() - 1.0)));
        let ready_at = registration(&state, &backend, now);
        if let Some(ready_at) = ready_at.filter(|ready_at| *ready_at < next) {
            clock::sleep_until(ready_at).await;
            registration(&state, &backend, clock::now());
        }
        clock::sleep_until(next).await;
    }
}

/// Leaves alone who is leaving, and asks again who is not any more; whether it is leaving.
fn follow(
    state: &State,
    backend: &Arc<str>,
    endpoint: &EndpointState,
    answer: &HeaderMap,
    asked: Instant,
) -> bool {
    let (backend, label) = (backend.clone(), endpoint.label.clone());
    let told = Told::of(answer);
    let is_leaving = told.is_some_and(|told| told.leaves());
    if let Some(ttl) = told.and_then(|told| endpoint.hear(&told, clock::wall, clock::now())) {
        state.telemetry.emit(Event::EndpointLeaves {
            backend,
            endpoint: label,
            ttl,
        });
    } else if !is_leaving && endpoint.come_back(asked) {
        state.telemetry.emit(Event::EndpointReturned {
            backend,
            endpoint: label,
            why: "a check says that it stays",
        });
    }
    is_leaving
}

/// How long until the next check: sooner where a result differs from what is known, so that a change is confirmed soon.
fn interval(spec: &CheckSpec, health: Health, has_passed: bool) -> Duration {
    match (health, has_passed) {
        (Health::Healthy, false) | (Health::Unhealthy, true) | (Health::Unknown, _) => {
            spec.edge_interval
        }
        (Health::Unhealthy, false) => spec.unhealthy_interval,
        (Health::Healthy, true) => spec.interval,
    }
}

/// Looks anew who of a backend may be picked.
fn review(state: &State, backend: &Arc<str>) {
    let live = state.live.load();
    if let Some(found) = live
        .backends
        .iter()
        .find(|other| other.spec.name == *backend)
    {
        found.review();
    }
}

/// Readiness by the required backend: any of its endpoints is healthy, and at the start its check has passed so many times in a
/// row, and then so long ago. Says when that will be, if it is only a matter of time.
fn registration(state: &State, backend: &Arc<str>, now: Instant) -> Option<Instant> {
    let live = state.live.load();
    let LifecycleSpec {
        require_backend,
        startup_delay,
        success_threshold,
        ..
    } = &live.snapshot.lifecycle;
    let required = &live.backends[(*require_backend)?];
    if required.spec.name != *backend {
        return None;
    }
    let set = |is_met, why: String| {
        state
            .lifecycle
            .set(condition::APP, is_met, why, now, &state.telemetry)
    };
    let healthy = required
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.health() == Health::Healthy);
    let Some(passes) = healthy.map(|endpoint| endpoint.check_summary().0).max() else {
        state.lifecycle.unregister();
        let results: Vec<String> = required
            .endpoints
            .iter()
            .map(|endpoint| format!("{} {}", endpoint.label, endpoint.check_summary().1))
            .collect();
        set(
            false,
            format!("the check of `{backend}`: {}", results.join(", ")),
        );
        return None;
    };
    match state
        .lifecycle
        .register(passes, *success_threshold, *startup_delay, now)
    {
        Ok(()) => set(true, format!("the check of `{backend}` passes")),
        Err(None) => set(
            false,
            format!("the check of `{backend}` has passed {passes} of {success_threshold} times"),
        ),
        Err(Some(ready_at)) => {
            set(
                false,
                format!(
                    "the check of `{backend}` has passed, waiting for the startup delay of {startup_delay:?}"
                ),
            );
            return Some(ready_at);
        }
    }
    None
}

async fn check(
    state: &State,
    endpoint: &EndpointState,
    spec: &CheckSpec,
    way: &Way,
    head: &mut Option<HeaderMap>,
) -> Result<(), String> {
    let tls = way.tls.as_ref();
    match &spec.probe {
        ProbeSpec::Tcp => connect(state, endpoint, way).await,
        ProbeSpec::Grpc { service } => {
            let (connection, _) = dial(state, endpoint, tls, Some(b"h2")).await?;
            let answer =
                grpc_check::ask(connection, endpoint.authority(), tls.is_some(), service).await?;
            let judged = grpc_check::judge(&answer);
            *head = Some(answer.head);
            judged
        }
        ProbeSpec::Http {
            path,
            host,
            expected,
            body,
        } => {
            let wanted = body.as_deref().unwrap_or_default().as_bytes();
            let max_body = if wanted.is_empty() { 0 } else { MAX_BODY };
            let Answer {
                status,
                head: fields,
                body,
            } = get(
                state,
                endpoint,
                way,
                path,
                host.as_deref().unwrap_or(endpoint.authority()),
                max_body,
            )
            .await?;
            *head = Some(fields);
            let is_in = wanted.is_empty() || body.windows(wanted.len()).any(|part| part == wanted);
            match (expected.contains(status), is_in) {
                (true, true) => Ok(()),
                (true, false) => Err("the expected words are not in the body".to_owned()),
                (false, _) => Err(format!("status {status}")),
            }
        }
    }
}

/// Only connects.
pub(super) async fn connect(
    state: &State,
    endpoint: &EndpointState,
    way: &Way,
) -> Result<(), String> {
    dial(state, endpoint, way.tls.as_ref(), None)
        .await
        .map(drop)
}

/// Asks a path, in the protocol that the backend speaks.
pub(super) async fn get(
    state: &State,
    endpoint: &EndpointState,
    way: &Way,
    path: &str,
    host: &str,
    max_body: usize,
) -> Result<Answer, String> {
    if way.protocol == Protocol::Http1 {
        let connection = dial(state, endpoint, way.tls.as_ref(), Some(b"http/1.1")).await?;
        let answer = http_call::call(
            connection,
            http_call::head("GET", path, host, &Bytes::new())?,
            Bytes::new(),
            max_body,
        )
        .await?;
        return Ok(Answer {
            status: answer.status,
            head: answer.head,
            body: answer.body.into(),
        });
    }
    let (connection, _) = dial(state, endpoint, way.tls.as_ref(), Some(b"h2")).await?;
    let scheme = if way.tls.is_some() { "https" } else { "http" };
    let request = http::Request::get(format!("{scheme}://{host}{path}"))
        .header(http::header::USER_AGENT, http_call::USER_AGENT)
        .body(());
    let answer = http2_call::call(
        connection,
        request.map_err(|error| error.to_string())?,
        Bytes::new(),
        max_body,
    )
    .await?;
    Ok(Answer {
        status: answer.status,
        head: answer.head,
        body: answer.body,
    })
}

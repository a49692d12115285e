//! Active health checks: one task for each endpoint of a backend with an active check.
//!
//! This module decides when an endpoint is checked and whether one check passes. It also
//! derives the readiness of the app from the checks of the required backend. Thresholds are
//! applied in [`crate::resilience::health`]. The module does not know proxied traffic, and it
//! does not select endpoints.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::{
    clock,
    control::{
        health::{
            grpc_check,
            probe_transport::{MAX_CHECK_BODY_BYTES, ProbeRequest, ProbeResponse, ProbeTransport},
            readiness_gates,
        },
        policy_change,
    },
    policy::snapshot::{ActiveCheckSpec, LifecycleSpec, ProbeSpec},
    resilience::health::Health,
    state::{
        State,
        instance::{drain, instance_age, lifecycle::condition},
        topology::endpoint::{EndpointState, peer_lifecycle::PeerLifecycle},
    },
    telemetry::event::Event,
};

struct RunningCheck {
    spec: ActiveCheckSpec,
    transport: ProbeTransport,
    task: AbortHandle,
}

impl Drop for RunningCheck {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Spread of first checks per endpoint of a backend. With `n` endpoints, first checks are
/// spread over `n` milliseconds, at most [`MAX_INITIAL_DELAY`], so that a start does not open
/// all connections at once.
const INITIAL_DELAY_PER_ENDPOINT: Duration = Duration::from_millis(1);
/// Upper limit of the time over which first checks are spread.
const MAX_INITIAL_DELAY: Duration = Duration::from_secs(1);

/// Runs one check task for each endpoint with an active check, and follows policy changes.
///
/// Returns only if a check task panicked or the policy can no longer change.
pub(in crate::control) async fn run_active_checks(
    state: Arc<State>,
    mut generations: watch::Receiver<u64>,
) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<u64, RunningCheck> = HashMap::new();
    loop {
        let active_policy = state.active_policy.load_full();
        let mut next = HashMap::new();
        for backend in &active_policy.backends {
            let Some(spec) = &backend.spec.active_check else {
                continue;
            };
            let transport = ProbeTransport::from_backend(&backend.spec);
            let max_initial_delay = INITIAL_DELAY_PER_ENDPOINT
                .saturating_mul(u32::try_from(backend.endpoints.len()).unwrap_or(u32::MAX))
                .min(MAX_INITIAL_DELAY);
            for endpoint in &backend.endpoints {
                let unchanged = running
                    .remove(&endpoint.id)
                    .filter(|running| running.spec == *spec && running.transport == transport);
                let task = unchanged.unwrap_or_else(|| RunningCheck {
                    spec: spec.clone(),
                    transport: transport.clone(),
                    task: tasks.spawn(
                        EndpointCheck {
                            state: state.clone(),
                            backend: backend.spec.name.clone(),
                            endpoint: endpoint.clone(),
                            spec: spec.clone(),
                            transport: transport.clone(),
                        }
                        .run_loop(max_initial_delay),
                    ),
                });
                next.insert(endpoint.id, task);
            }
        }
        running = next;
        if !policy_change::wait_for_policy_change(&mut generations, &mut tasks).await {
            return;
        }
    }
}

/// Active check of one endpoint.
struct EndpointCheck {
    state: Arc<State>,
    /// Name of the backend of the endpoint.
    backend: Arc<str>,
    endpoint: Arc<EndpointState>,
    spec: ActiveCheckSpec,
    transport: ProbeTransport,
}

impl EndpointCheck {
    /// Checks the endpoint repeatedly, for the first time after a random part of
    /// `max_initial_delay`. Never returns.
    async fn run_loop(self, max_initial_delay: Duration) {
        let Self {
            state,
            backend,
            endpoint,
            spec,
            ..
        } = &self;
        clock::sleep(max_initial_delay.mul_f64(fastrand::f64())).await;
        loop {
            let began = clock::now();
            let mut head = None;
            let checked = clock::timeout(Some(spec.timeout), self.run_once(&mut head)).await;
            let result =
                checked.unwrap_or_else(|_| Err(format!("no response within {:?}", spec.timeout)));
            let is_draining = head.is_some_and(|head| self.observe_peer_lifecycle(&head, began));
            // A draining endpoint may fail its checks. That failure says nothing about its
            // health and is not recorded.
            if (result.is_ok() || !is_draining)
                && let Some(health) = endpoint.record_check(&spec.thresholds, &result, clock::now())
            {
                let reason = result
                    .clone()
                    .err()
                    .unwrap_or_else(|| "the check passed".to_owned());
                state.telemetry.emit(Event::HealthChanged {
                    backend: backend.clone(),
                    endpoint: endpoint.label.clone(),
                    health,
                    reason,
                });
                refresh_selectable_endpoints(state, backend);
                readiness_gates::update_conditions(state);
            }
            let now = clock::now();
            // Jitter keeps many sidecars from checking in step.
            let interval = interval(spec, endpoint.health(), result.is_ok());
            let next = now
                .max(began + interval.mul_f64(1.0 + spec.jitter * (2.0 * fastrand::f64() - 1.0)));
            let ready_at = update_app_readiness(state, backend, now);
            if let Some(ready_at) = ready_at.filter(|ready_at| *ready_at < next) {
                clock::sleep_until(ready_at).await;
                update_app_readiness(state, backend, clock::now());
            }
            clock::sleep_until(next).await;
        }
    }

    /// Applies the lifecycle headers of a check response: marks the endpoint as draining, or
    /// clears that mark. Returns whether the endpoint reports that it is draining.
    fn observe_peer_lifecycle(&self, response: &HeaderMap, requested_at: Instant) -> bool {
        let (backend, label) = (self.backend.clone(), self.endpoint.label.clone());
        let text_of = |name| {
            let value = response.get(name)?;
            http::HeaderValue::to_str(value).ok()
        };
        let peer_lifecycle = PeerLifecycle::parse(
            text_of(instance_age::STARTED_AT_HEADER),
            text_of(drain::DRAINING_HEADER),
        );
        let is_draining = peer_lifecycle.is_some_and(|peer_lifecycle| peer_lifecycle.is_draining());
        if let Some(ttl) = peer_lifecycle.and_then(|peer_lifecycle| {
            self.endpoint
                .observe(&peer_lifecycle, clock::wall_time, clock::now())
        }) {
            self.state.telemetry.emit(Event::EndpointDraining {
                backend,
                endpoint: label,
                ttl,
            });
        } else if !is_draining && self.endpoint.clear_draining(requested_at) {
            self.state.telemetry.emit(Event::EndpointDrainingCleared {
                backend,
                endpoint: label,
                reason: "a check reports that it does not drain",
            });
        }
        is_draining
    }

    /// Runs one check. Stores the headers of a response in `head`, also of a failed check.
    async fn run_once(&self, head: &mut Option<HeaderMap>) -> Result<(), String> {
        let (state, endpoint, transport) = (&self.state, &self.endpoint, &self.transport);
        match &self.spec.probe {
            ProbeSpec::Tcp => transport.check_connect(state, endpoint).await,
            ProbeSpec::Grpc { service } => {
                let connection = transport.connect(state, endpoint, Some(b"h2")).await?;
                let response = grpc_check::send_check(
                    connection,
                    endpoint.authority(),
                    transport.uses_tls(),
                    service,
                )
                .await?;
                let verdict = grpc_check::evaluate_response(&response);
                *head = Some(response.headers);
                verdict
            }
            ProbeSpec::Http {
                path,
                host,
                expected,
                body,
            } => {
                let expected_body = body.as_deref().unwrap_or_default().as_bytes();
                let max_body_bytes = if expected_body.is_empty() {
                    0
                } else {
                    MAX_CHECK_BODY_BYTES
                };
                let ProbeResponse {
                    status,
                    headers,
                    body,
                } = transport
                    .send_get(
                        state,
                        endpoint,
                        ProbeRequest {
                            path,
                            host: host.as_deref().unwrap_or(endpoint.authority()),
                            max_body_bytes,
                        },
                    )
                    .await?;
                *head = Some(headers);
                let has_expected_body = expected_body.is_empty()
                    || body
                        .windows(expected_body.len())
                        .any(|part| part == expected_body);
                match (expected.contains(status), has_expected_body) {
                    (true, true) => Ok(()),
                    (true, false) => Err("the body does not contain `expectedBody`".to_owned()),
                    (false, _) => Err(format!("status {status}")),
                }
            }
        }
    }
}

/// Returns the time until the next check. A result that contradicts the known health, or a
/// first result, is confirmed after `edge_interval`.
fn interval(spec: &ActiveCheckSpec, health: Health, has_passed: bool) -> Duration {
    match (health, has_passed) {
        (Health::Healthy, false) | (Health::Unhealthy, true) | (Health::Unknown, _) => {
            spec.edge_interval
        }
        (Health::Unhealthy, false) => spec.unhealthy_interval,
        (Health::Healthy, true) => spec.interval,
    }
}

/// Recomputes which endpoints of a backend can be selected.
fn refresh_selectable_endpoints(state: &State, backend: &Arc<str>) {
    let active_policy = state.active_policy.load();
    if let Some(found) = active_policy.find_backend(backend) {
        found.refresh_selectable();
    }
}

/// Updates the app readiness condition if `backend` is the required backend.
///
/// The condition is met if an endpoint of the backend is healthy. At startup, that endpoint
/// must also have passed `success_threshold` consecutive checks, and `startup_delay` must have
/// elapsed since then. Returns the time at which the condition will be met, if only that delay
/// is missing.
fn update_app_readiness(state: &State, backend: &Arc<str>, now: Instant) -> Option<Instant> {
    let active_policy = state.active_policy.load();
    let LifecycleSpec {
        required_backend: require_backend,
        startup_delay,
        success_threshold,
        ..
    } = &active_policy.snapshot.lifecycle;
    let required = &active_policy.backends[(*require_backend)?];
    if required.spec.name != *backend {
        return None;
    }
    let set = |is_met, reason: String| {
        state
            .lifecycle
            .set_condition(condition::APP, is_met, reason, now)
    };
    let healthy = required
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.health() == Health::Healthy);
    let Some(passes) = healthy.map(|endpoint| endpoint.check_summary().0).max() else {
        state.lifecycle.reset_registration();
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
        .try_register(passes, *success_threshold, *startup_delay, now)
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
                    "the check of `{backend}` has passed, waiting for the startup delay of \
                     {startup_delay:?}"
                ),
            );
            return Some(ready_at);
        }
    }
    None
}

//! What the API shows, as plain data; and the gauges that are read rather than counted.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    clock::Rfc3339,
    policy::snapshot::{ActionSpec, Balancer, RecoveryAction},
    resilience::{
        Mode,
        capacity::{Forecast, Present, Verdict},
        health::Health,
        lifecycle::Stage,
        outlier::Standing,
    },
    state::{State, backend::BackendState, breaker::BreakerState, capacity},
    telemetry::metrics::{health_name, level_name, name, signal_name, state_name},
};

#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    /// `starting`, `serving`, `draining`, or `drained` of callers.
    lifecycle: &'static str,
    ready: bool,
    uptime_seconds: u64,
    in_flight: usize,
    /// Of callers.
    in_flight_inbound: usize,
    /// Of the app.
    in_flight_outbound: usize,
    capacity: Capacity,
    policy: PolicyStatus,
    listeners: Vec<String>,
}

/// What is to be expected when this instance leaves.
#[derive(Serialize)]
pub(super) struct Capacity {
    /// `enough`, `too_little`, `alone`, `unknown_replicas` or `unknown_limit`.
    verdict: &'static str,
    replicas_staying: Option<u32>,
    staying_percent: Option<f64>,
    /// Of the last ten seconds, here.
    peak_in_flight: u32,
    requests_per_second: f64,
    /// Requests that may be in flight at once at a replica.
    limit: Option<u32>,
    /// At each of the others, when this instance has left.
    in_flight_each: Option<f64>,
    requests_per_second_each: Option<f64>,
    requests_per_second_limit_each: Option<f64>,
}

#[derive(Serialize)]
struct PolicyStatus {
    generation: u64,
    hash: String,
    /// `applied`, or `refused` if a newer set was; then the faults.
    last_result: &'static str,
    faults: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Route {
    name: String,
    direction: String,
    backends: Vec<RouteBackend>,
    rate_limits: Vec<RateLimit>,
}

#[derive(Serialize)]
struct RouteBackend {
    name: String,
    weight: u32,
    breaker: Option<String>,
    limit: Option<String>,
    retry_budget: String,
}

#[derive(Serialize)]
struct RateLimit {
    name: String,
    mode: &'static str,
    requests: u32,
    per_seconds: u64,
    burst: u32,
    /// Whether all instances share it.
    is_global: bool,
    /// By how many instances it is divided here.
    instances: u32,
    keys: usize,
    overflowed: u64,
    /// Requests that waited for their tokens.
    delayed: u64,
    /// Answers whose cost is no whole number.
    unreadable_costs: u64,
}

#[derive(Serialize)]
pub(super) struct Backend {
    name: String,
    connections: u32,
    health_ignored: bool,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize)]
struct Endpoint {
    address: String,
    health: &'static str,
    last_check: String,
    in_flight: u32,
    weight: u32,
    zone: Option<String>,
    priority: u32,
    /// For how long it is still left alone, because it said that it is leaving.
    left_alone_seconds: Option<f64>,
    /// The share of its weight that it gets while it warms up.
    warm_percent: f64,
    /// `in`, `ejected for 12.3 s` or `probation`.
    outlier: String,
    /// What the balancer PeakEwma takes its latency for.
    latency_ms: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Breaker {
    name: String,
    mode: &'static str,
    state: &'static str,
    in_state_seconds: f64,
    calls: u32,
    failed: u32,
    slow: u32,
    failure_rate_percent: f64,
    slow_call_rate_percent: f64,
    consecutive_failures: u32,
    admitted_percent: f64,
    refused: u64,
    late_results: u64,
    next_change_in_seconds: Option<f64>,
    not_closed_for_seconds: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Limits {
    concurrency: Vec<Concurrency>,
    retry_budgets: Vec<RetryBudget>,
    rate: Vec<RateLimit>,
    admission: Vec<Admission>,
    /// Who keeps those of all instances.
    global: Option<Global>,
    /// How short of resources the instance is, if that is watched.
    protection: Option<Protection>,
}

/// What an admission control has counted in its window.
#[derive(Serialize)]
struct Admission {
    name: String,
    mode: &'static str,
    attempts: u32,
    good: u32,
    rejection_percent: f64,
}

#[derive(Serialize)]
struct Protection {
    mode: &'static str,
    level: &'static str,
    /// The share of the class normal that is refused.
    normal_refused_percent: f64,
    signals: Vec<SignalView>,
}

#[derive(Serialize)]
struct SignalView {
    name: &'static str,
    percent: f64,
    level: &'static str,
}

#[derive(Serialize)]
struct Global {
    engine: String,
    /// Whether it can be asked; not given for an engine that is not asked.
    is_connected: Option<bool>,
    fails_closed: bool,
}

#[derive(Serialize)]
struct Concurrency {
    name: String,
    mode: &'static str,
    in_flight: u32,
    /// Those whose answer has not begun.
    working: u32,
    max_in_flight: u32,
    pending: u32,
    max_pending: u32,
    refused: u64,
    adaptive: Option<AdaptiveView>,
}

#[derive(Serialize)]
struct AdaptiveView {
    mode: &'static str,
    limit: u32,
}

#[derive(Serialize)]
struct RetryBudget {
    name: String,
    remaining: u32,
    percent: f64,
}

#[derive(Serialize)]
pub(super) struct Recovery {
    name: String,
    mode: &'static str,
    backend: String,
    open_for_seconds: f64,
    ladder: Vec<&'static str>,
    cooldown_seconds: f64,
    max_per_hour: u32,
    last_events: Vec<String>,
}

pub(super) fn status(state: &State, now: Instant) -> Status {
    let live = state.live.load();
    let lifecycle = &state.lifecycle;
    let current = lifecycle.policy_current();
    let load = state.departure.load();
    let (present, forecast) = capacity::forecast(state, now);
    let stage = match (state.departure.stage(), lifecycle.has_started()) {
        (Stage::Drained | Stage::Gone, _) => "drained",
        (Stage::Announcing | Stage::Waiting | Stage::Parting, _) => "draining",
        (Stage::Serving, true) => "serving",
        (Stage::Serving, false) => "starting",
    };
    Status {
        version: env!("CARGO_PKG_VERSION"),
        lifecycle: stage,
        ready: lifecycle.is_ready(),
        uptime_seconds: now.saturating_duration_since(lifecycle.born()).as_secs(),
        in_flight: state.departure.in_flight(),
        in_flight_inbound: load.inbound.in_flight,
        in_flight_outbound: load.outbound.in_flight,
        capacity: capacity(&present, &forecast),
        policy: PolicyStatus {
            generation: live.generation,
            hash: live.snapshot.hash.clone(),
            last_result: if current.is_ok() {
                "applied"
            } else {
                "refused"
            },
            faults: current
                .err()
                .map(|faults| faults.lines().map(str::to_owned).collect())
                .unwrap_or_default(),
        },
        listeners: live
            .snapshot
            .listeners
            .iter()
            .map(|listener| format!("{} {}", listener.name, listener.address))
            .collect(),
    }
}

/// What is to be expected when this instance leaves.
pub(super) fn capacity(present: &Present, forecast: &Forecast) -> Capacity {
    let finite = |number: f64| number.is_finite().then_some(number);
    Capacity {
        verdict: match forecast.verdict {
            Verdict::UnknownReplicas => "unknown_replicas",
            Verdict::Alone => "alone",
            Verdict::UnknownLimit => "unknown_limit",
            Verdict::Enough => "enough",
            Verdict::TooLittle => "too_little",
        },
        replicas_staying: forecast.staying,
        staying_percent: forecast.staying.map(|_| forecast.share * 100.0),
        peak_in_flight: present.peak_in_flight,
        requests_per_second: present.rate,
        limit: present.limit,
        in_flight_each: finite(forecast.in_flight_each),
        requests_per_second_each: finite(forecast.rate_each),
        requests_per_second_limit_each: forecast.rate_limit_each.and_then(finite),
    }
}

pub(super) fn routes(state: &State) -> Vec<Route> {
    let live = state.live.load();
    let backends = |route: &crate::state::live::RouteState| {
        let destinations = route.destinations.iter();
        destinations
            .map(|to| RouteBackend {
                name: to.backend.spec.name.to_string(),
                weight: to.weight,
                breaker: to
                    .breaker
                    .as_ref()
                    .map(|breaker| breaker.name().to_string()),
                limit: to.limit.as_ref().map(|limit| limit.name().to_string()),
                retry_budget: to.budget.name().to_string(),
            })
            .collect()
    };
    live.routes
        .iter()
        .map(|route| Route {
            name: match route.spec.action {
                ActionSpec::Forward(_) => route.spec.name.to_string(),
                ActionSpec::Redirect(_) => format!("{} (redirect)", route.spec.name),
            },
            direction: format!("{:?}", route.spec.direction),
            backends: backends(route),
            rate_limits: rate_limits(route),
        })
        .collect()
}

fn rate_limits(route: &crate::state::live::RouteState) -> Vec<RateLimit> {
    let limits = route.rate_limits.iter();
    limits
        .map(|limit| {
            let usage = limit.usage();
            let rule = limit.rule();
            RateLimit {
                name: limit.name().to_string(),
                mode: mode(rule.mode),
                requests: rule.quota.requests.get(),
                per_seconds: rule.quota.unit_seconds.get(),
                burst: rule.quota.burst.get(),
                is_global: rule.is_global,
                instances: limit.instances(),
                keys: usage.keys,
                overflowed: usage.overflowed,
                delayed: usage.delayed,
                unreadable_costs: usage.bad_bills,
            }
        })
        .collect()
}

pub(super) fn backends(state: &State, now: Instant) -> Vec<Backend> {
    let live = state.live.load();
    let endpoints = |backend: &BackendState| {
        let pairs = backend.endpoints.iter().zip(&backend.places);
        pairs
            .map(|(endpoint, place)| Endpoint {
                address: endpoint.label.to_string(),
                health: health_name(endpoint.health()),
                last_check: endpoint.check_summary().1,
                in_flight: endpoint.in_flight(),
                weight: place.weight.get(),
                zone: place.zone.as_deref().map(str::to_owned),
                priority: place.priority,
                left_alone_seconds: endpoint
                    .alone_until()
                    .map(|until| until.saturating_duration_since(now).as_secs_f64()),
                warm_percent: endpoint.warmth(backend.spec.warm_up.as_ref(), now) * 100.0,
                outlier: standing(&endpoint.standing(), now),
                latency_ms: matches!(backend.spec.balancer, Balancer::PeakEwma)
                    .then(|| endpoint.latency_now(now).as_secs_f64() * 1e3),
            })
            .collect()
    };
    live.backends
        .iter()
        .map(|backend| Backend {
            name: backend.spec.name.to_string(),
            connections: backend.counters.connections(),
            health_ignored: backend.is_panicking(),
            endpoints: endpoints(backend),
        })
        .collect()
}

fn standing(standing: &Standing, now: Instant) -> String {
    match standing {
        Standing::In => "in".to_owned(),
        Standing::Ejected { until } => format!(
            "ejected for {:.1} s",
            until.saturating_duration_since(now).as_secs_f64()
        ),
        Standing::Probation { .. } => "probation".to_owned(),
    }
}

pub(super) fn breakers(state: &State, now: Instant) -> Vec<Breaker> {
    state
        .live
        .load()
        .breakers
        .iter()
        .map(|state| breaker(state, now))
        .collect()
}

pub(super) fn breaker(breaker: &Arc<BreakerState>, now: Instant) -> Breaker {
    let (snapshot, acts) = breaker.snapshot(now);
    Breaker {
        name: breaker.name().to_string(),
        mode: mode(acts),
        state: state_name(snapshot.state),
        in_state_seconds: now.saturating_duration_since(snapshot.since).as_secs_f64(),
        calls: snapshot.counts.total(),
        failed: snapshot.counts.failures,
        slow: snapshot.counts.slow,
        failure_rate_percent: snapshot.counts.failure_rate().percent(),
        slow_call_rate_percent: snapshot.counts.slow_call_rate().percent(),
        consecutive_failures: snapshot.consecutive_failures,
        admitted_percent: snapshot.admitted.percent(),
        refused: snapshot.refused,
        late_results: snapshot.late_results,
        next_change_in_seconds: snapshot
            .deadline
            .map(|at| at.saturating_duration_since(now).as_secs_f64()),
        not_closed_for_seconds: snapshot
            .tripped_since
            .map(|at| now.saturating_duration_since(at).as_secs_f64()),
    }
}

pub(super) fn limits(state: &State, now: Instant) -> Limits {
    let live = state.live.load();
    let concurrency = live.limits.iter().map(|limit| {
        let snapshot = limit.snapshot();
        Concurrency {
            name: limit.name().to_string(),
            mode: mode(snapshot.mode),
            in_flight: snapshot.in_flight,
            working: snapshot.working,
            max_in_flight: snapshot.config.max_in_flight.get(),
            pending: snapshot.pending,
            max_pending: snapshot.config.max_pending,
            refused: snapshot.refused,
            adaptive: snapshot.adaptive.map(|(limit, of)| AdaptiveView {
                mode: mode(of),
                limit,
            }),
        }
    });
    let budgets = live.budgets.iter();
    Limits {
        concurrency: concurrency.collect(),
        retry_budgets: budgets
            .map(|budget| RetryBudget {
                name: budget.name().to_string(),
                remaining: budget.remaining(now),
                percent: budget.config().share.percent(),
            })
            .collect(),
        rate: live.routes.iter().flat_map(rate_limits).collect(),
        admission: live
            .admissions
            .iter()
            .map(|admission| {
                let (calls, rejection, of) = admission.snapshot(now);
                Admission {
                    name: admission.name().to_string(),
                    mode: mode(of),
                    attempts: calls.all,
                    good: calls.good,
                    rejection_percent: rejection.percent(),
                }
            })
            .collect(),
        global: live
            .snapshot
            .global_rate_limit
            .as_ref()
            .map(|global| Global {
                engine: global.to_string(),
                is_connected: live
                    .remote_limits
                    .as_ref()
                    .map(|remote| remote.engine().is_some()),
                fails_closed: global.fails_closed,
            }),
        protection: live.snapshot.protection.as_ref().map(|spec| Protection {
            mode: mode(spec.mode),
            level: level_name(state.protection.level()),
            normal_refused_percent: state.protection.share() * 100.0,
            signals: state
                .protection
                .signals()
                .into_iter()
                .map(|(signal, value, level)| SignalView {
                    name: signal_name(signal),
                    percent: value * 100.0,
                    level: level_name(level),
                })
                .collect(),
        }),
    }
}

pub(super) fn recoveries(state: &State) -> Vec<Recovery> {
    let live = state.live.load();
    let recent = state.telemetry.recent();
    let events_of = |name: &str| {
        let about = recent.iter().filter(|event| {
            event.event.kind().starts_with("recovery_")
                && [' ', ':'].iter().any(|end| {
                    event
                        .event
                        .to_string()
                        .starts_with(&format!("recovery {name}{end}"))
                })
        });
        about
            .map(|event| format!("{} {}", Rfc3339(event.at), event.event))
            .collect()
    };
    let specs = live.snapshot.recoveries.iter();
    specs
        .map(|spec| Recovery {
            name: spec.name.to_string(),
            mode: mode(spec.mode),
            backend: spec.backend.to_string(),
            open_for_seconds: spec.open_for.as_secs_f64(),
            ladder: spec
                .ladder
                .iter()
                .map(|action| match action {
                    RecoveryAction::Webhook { .. } => "Webhook",
                    RecoveryAction::FailReadiness => "FailReadiness",
                })
                .collect(),
            cooldown_seconds: spec.config.cooldown.as_secs_f64(),
            max_per_hour: spec.config.max_per_hour.get(),
            last_events: events_of(&spec.name),
        })
        .collect()
}

/// Sets the gauges that are read when somebody asks.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating point, and these counts are far below 2^53"
)]
pub(super) fn record_gauges(state: &State, now: Instant) {
    let live = state.live.load();
    let metrics = &state.telemetry.metrics;
    metrics
        .gauge(name::IN_FLIGHT, &[])
        .set(state.departure.in_flight() as f64);
    metrics
        .gauge(name::ACCESS_LOG_DROPPED, &[])
        .set(state.telemetry.access_log.dropped() as f64);
    for (listener, connections) in state.lifecycle.connections() {
        metrics
            .gauge(name::CONNECTIONS, &[("listener", &listener)])
            .set(f64::from(connections));
    }
    for backend in &live.backends {
        let backend_name = &backend.spec.name;
        metrics
            .gauge(name::BACKEND_CONNECTIONS, &[("backend", backend_name)])
            .set(f64::from(backend.counters.connections()));
        for health in [Health::Unknown, Health::Healthy, Health::Unhealthy] {
            let count = backend
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.health() == health)
                .count();
            metrics
                .gauge(
                    name::ENDPOINTS,
                    &[("backend", backend_name), ("health", health_name(health))],
                )
                .set(count as f64);
        }
        let ejected = backend
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.standing() != Standing::In)
            .count();
        metrics
            .gauge(name::ENDPOINTS_EJECTED, &[("backend", backend_name)])
            .set(ejected as f64);
        metrics
            .gauge(name::ENDPOINTS_AVAILABLE, &[("backend", backend_name)])
            .set(backend.available() as f64);
    }
    for limit in &live.limits {
        let snapshot = limit.snapshot();
        metrics
            .gauge(name::LIMIT_IN_FLIGHT, &[("limit", limit.name())])
            .set(f64::from(snapshot.in_flight));
        metrics
            .gauge(name::LIMIT_MAX, &[("limit", limit.name())])
            .set(f64::from(snapshot.config.max_in_flight.get()));
        if let Some((adaptive, _)) = snapshot.adaptive {
            metrics
                .gauge(name::LIMIT_ADAPTIVE, &[("limit", limit.name())])
                .set(f64::from(adaptive));
        }
        metrics
            .gauge(name::LIMIT_PENDING, &[("limit", limit.name())])
            .set(f64::from(snapshot.pending));
    }
    for admission in &live.admissions {
        metrics
            .gauge(
                name::ADMISSION_REJECTION,
                &[("admission", admission.name())],
            )
            .set(admission.snapshot(now).1.value());
    }
    metrics
        .gauge(name::PROTECTION_LEVEL, &[])
        .set(f64::from(state.protection.level() as u8));
    for stale in &live.stale {
        let (answers, bytes) = stale.size();
        metrics
            .gauge(name::STALE_ADDRESSES, &[("store", stale.name())])
            .set(answers as f64);
        metrics
            .gauge(name::STALE_BYTES, &[("store", stale.name())])
            .set(bytes as f64);
    }
    for (signal, value, _) in state.protection.signals() {
        metrics
            .gauge(name::PROTECTION_SIGNAL, &[("signal", signal_name(signal))])
            .set(value);
    }
    for budget in &live.budgets {
        metrics
            .gauge(name::RETRY_BUDGET, &[("budget", budget.name())])
            .set(f64::from(budget.remaining(now)));
    }
    for limit in live.routes.iter().flat_map(|route| &route.rate_limits) {
        let usage = limit.usage();
        let rule = [("rule", &**limit.name())];
        metrics
            .gauge(name::RATE_LIMIT_KEYS, &rule)
            .set(usage.keys as f64);
        metrics
            .gauge(name::RATE_LIMIT_OVERFLOW, &rule)
            .set(usage.overflowed as f64);
        metrics
            .gauge(name::RATE_LIMIT_DELAYED, &rule)
            .set(usage.delayed as f64);
        metrics
            .gauge(name::RATE_LIMIT_INSTANCES, &rule)
            .set(f64::from(limit.instances()));
        metrics
            .gauge(name::RATE_LIMIT_UNREADABLE, &rule)
            .set(usage.bad_bills as f64);
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "Enforce",
        Mode::Shadow => "Shadow",
        Mode::Off => "Off",
    }
}

//! Response types of the admin API, and the gauges that are set when the metrics are read.
//!
//! The views render state and decide nothing. Field names are the public JSON keys of the API.
//! Durations are in the unit of the field's suffix, and percentages are in `0.0..=100.0`.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    clock::Rfc3339,
    policy::snapshot::{LoadBalancerSpec, RecoveryAction, RouteActionSpec},
    resilience::{
        Mode,
        capacity::{CapacityForecast, CapacityVerdict, ObservedLoad},
        health::Health,
        lifecycle::Stage,
        outlier::EjectionState,
    },
    state::{
        State, instance::capacity, policies::breaker::BreakerState, topology::backend::BackendState,
    },
    telemetry::metrics::{
        breaker_state_name, health_name, name, protection_level_name, protection_signal_name,
    },
};

#[derive(Serialize)]
pub(super) struct StatusView {
    version: &'static str,
    /// `starting`, `serving`, `draining` or `drained`.
    lifecycle: &'static str,
    ready: bool,
    uptime_seconds: u64,
    in_flight: usize,
    /// Requests from clients to the app.
    in_flight_inbound: usize,
    /// Requests from the app to other services.
    in_flight_outbound: usize,
    capacity: CapacityView,
    policy: PolicyStatusView,
    listeners: Vec<String>,
}

/// Recent load, and the forecast of the load on the other replicas after this instance has
/// drained.
#[derive(Serialize)]
pub(super) struct CapacityView {
    /// `enough`, `too_little`, `alone`, `unknown_replicas` or `unknown_limit`.
    verdict: &'static str,
    replicas_staying: Option<u32>,
    staying_percent: Option<f64>,
    /// Highest number of concurrent inbound requests of this instance in the last ten seconds.
    peak_in_flight: u32,
    requests_per_second: f64,
    /// Maximum number of requests in flight at one replica, from its inbound concurrency
    /// limits.
    limit: Option<u32>,
    /// Expected requests in flight at each remaining replica, at the observed peak.
    in_flight_each: Option<f64>,
    requests_per_second_each: Option<f64>,
    requests_per_second_limit_each: Option<f64>,
}

#[derive(Serialize)]
struct PolicyStatusView {
    generation: u64,
    hash: String,
    /// `applied`, or `refused` if the newest policies are invalid; `faults` then lists the
    /// reasons.
    last_result: &'static str,
    faults: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct RouteView {
    name: String,
    direction: String,
    backends: Vec<RouteBackendView>,
    rate_limits: Vec<RateLimitView>,
}

#[derive(Serialize)]
struct RouteBackendView {
    name: String,
    weight: u32,
    breaker: Option<String>,
    limit: Option<String>,
    retry_budget: String,
}

#[derive(Serialize)]
struct RateLimitView {
    name: String,
    mode: &'static str,
    requests: u32,
    per_seconds: u64,
    burst: u32,
    /// Whether all instances share the quota.
    is_global: bool,
    /// Number of instances that the quota is divided by.
    instances: u32,
    keys: usize,
    overflowed: u64,
    /// Requests that were delayed until their tokens were available.
    delayed: u64,
    /// Responses whose cost header is not a whole number.
    unreadable_costs: u64,
}

#[derive(Serialize)]
pub(super) struct BackendView {
    name: String,
    connections: u32,
    health_ignored: bool,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct EndpointView {
    address: String,
    health: &'static str,
    last_check: String,
    in_flight: u32,
    weight: u32,
    zone: Option<String>,
    priority: u32,
    /// Remaining time in which the endpoint gets no new requests, because it announced its
    /// drain.
    left_alone_seconds: Option<f64>,
    /// Share of its weight that the endpoint currently gets during warm-up, in `0.0..=100.0`.
    warm_percent: f64,
    /// `in`, `ejected for 12.3 s` or `probation`.
    outlier: String,
    /// Latency estimate of the PeakEwma load balancer; absent for other load balancers.
    latency_ms: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct BreakerView {
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
pub(super) struct LimitsView {
    concurrency: Vec<ConcurrencyView>,
    retry_budgets: Vec<RetryBudgetView>,
    rate: Vec<RateLimitView>,
    admission: Vec<AdmissionView>,
    /// Engine of the global rate limits, if the policies configure them.
    global: Option<GlobalRateLimitView>,
    /// Overload protection and its signals, if the policies configure it.
    protection: Option<ProtectionView>,
}

/// Attempts that an admission control counted in its window, and its rejection probability.
#[derive(Serialize)]
struct AdmissionView {
    name: String,
    mode: &'static str,
    attempts: u32,
    good: u32,
    rejection_percent: f64,
}

#[derive(Serialize)]
struct ProtectionView {
    mode: &'static str,
    level: &'static str,
    /// Share of the requests of priority class `normal` that are shed, in `0.0..=100.0`.
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
struct GlobalRateLimitView {
    engine: String,
    /// Whether the engine is connected; absent if the engine needs no connection.
    is_connected: Option<bool>,
    fails_closed: bool,
}

#[derive(Serialize)]
struct ConcurrencyView {
    name: String,
    mode: &'static str,
    in_flight: u32,
    /// Requests in flight whose response has not begun.
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
struct RetryBudgetView {
    name: String,
    remaining: u32,
    percent: f64,
}

#[derive(Serialize)]
pub(super) struct RecoveryView {
    name: String,
    mode: &'static str,
    backend: String,
    open_for_seconds: f64,
    ladder: Vec<&'static str>,
    cooldown_seconds: f64,
    max_per_hour: u32,
    last_events: Vec<String>,
}

pub(super) fn status(state: &State, now: Instant) -> StatusView {
    let active_policy = state.active_policy.load();
    let lifecycle = &state.lifecycle;
    let current = lifecycle.policy_current();
    let load = state.drain.instance_load();
    let (present, forecast) = capacity::forecast(state, now);
    let stage = match (state.drain.stage(), lifecycle.has_started()) {
        (Stage::Drained | Stage::Terminated, _) => "drained",
        (Stage::Announcing | Stage::AwaitingQuiet | Stage::ClosingStreams, _) => "draining",
        (Stage::Serving, true) => "serving",
        (Stage::Serving, false) => "starting",
    };
    StatusView {
        version: env!("CARGO_PKG_VERSION"),
        lifecycle: stage,
        ready: lifecycle.is_ready(),
        uptime_seconds: now
            .saturating_duration_since(lifecycle.created_at())
            .as_secs(),
        in_flight: state.drain.in_flight(),
        in_flight_inbound: load.inbound.in_flight,
        in_flight_outbound: load.outbound.in_flight,
        capacity: capacity(&present, &forecast),
        policy: PolicyStatusView {
            generation: active_policy.generation,
            hash: active_policy.snapshot.hash.clone(),
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
        listeners: active_policy
            .snapshot
            .listeners
            .iter()
            .map(|listener| format!("{} {}", listener.name, listener.address))
            .collect(),
    }
}

/// Converts the observed load and its forecast into the view; infinite numbers become absent.
pub(super) fn capacity(present: &ObservedLoad, forecast: &CapacityForecast) -> CapacityView {
    let finite = |number: f64| number.is_finite().then_some(number);
    CapacityView {
        verdict: match forecast.verdict {
            CapacityVerdict::UnknownReplicas => "unknown_replicas",
            CapacityVerdict::NoOtherReplica => "alone",
            CapacityVerdict::UnknownLimit => "unknown_limit",
            CapacityVerdict::Sufficient => "enough",
            CapacityVerdict::Insufficient => "too_little",
        },
        replicas_staying: forecast.remaining_replicas,
        staying_percent: forecast
            .remaining_replicas
            .map(|_| forecast.remaining_capacity * 100.0),
        peak_in_flight: present.peak_in_flight,
        requests_per_second: present.requests_per_second,
        limit: present.limit,
        in_flight_each: finite(forecast.in_flight_per_replica),
        requests_per_second_each: finite(forecast.requests_per_second_per_replica),
        requests_per_second_limit_each: forecast
            .max_requests_per_second_per_replica
            .and_then(finite),
    }
}

pub(super) fn routes(state: &State) -> Vec<RouteView> {
    let active_policy = state.active_policy.load();
    let backends = |route: &crate::state::active_policy::RouteState| {
        let destinations = route.destinations.iter();
        destinations
            .map(|destination| RouteBackendView {
                name: destination.backend.spec.name.to_string(),
                weight: destination.weight,
                breaker: destination
                    .breaker
                    .as_ref()
                    .map(|breaker| breaker.name().to_string()),
                limit: destination
                    .concurrency_limit
                    .as_ref()
                    .map(|limit| limit.name().to_string()),
                retry_budget: destination.retry_budget.name().to_string(),
            })
            .collect()
    };
    active_policy
        .routes
        .iter()
        .map(|route| RouteView {
            name: match route.spec.action {
                RouteActionSpec::Forward(_) => route.spec.name.to_string(),
                RouteActionSpec::Redirect(_) => format!("{} (redirect)", route.spec.name),
            },
            direction: format!("{:?}", route.spec.direction),
            backends: backends(route),
            rate_limits: rate_limits(route),
        })
        .collect()
}

fn rate_limits(route: &crate::state::active_policy::RouteState) -> Vec<RateLimitView> {
    let limits = route.rate_limits.iter();
    limits
        .map(|limit| {
            let usage = limit.usage();
            let rule = limit.rule();
            RateLimitView {
                name: limit.name().to_string(),
                mode: mode_name(rule.mode),
                requests: rule.quota.requests.get(),
                per_seconds: rule.quota.unit_seconds.get(),
                burst: rule.quota.burst.get(),
                is_global: rule.is_global,
                instances: limit.instances(),
                keys: usage.keys,
                overflowed: usage.overflowed_requests,
                delayed: usage.delayed_requests,
                unreadable_costs: usage.invalid_costs,
            }
        })
        .collect()
}

pub(super) fn backends(state: &State, now: Instant) -> Vec<BackendView> {
    let active_policy = state.active_policy.load();
    let endpoints = |backend: &BackendState| {
        let pairs = backend.endpoints.iter().zip(&backend.endpoint_specs);
        pairs
            .map(|(endpoint, endpoint_spec)| EndpointView {
                address: endpoint.label.to_string(),
                health: health_name(endpoint.health()),
                last_check: endpoint.check_summary().1,
                in_flight: endpoint.in_flight(),
                weight: endpoint_spec.weight.get(),
                zone: endpoint_spec.zone.as_deref().map(str::to_owned),
                priority: endpoint_spec.priority,
                left_alone_seconds: endpoint
                    .draining_until()
                    .map(|until| until.saturating_duration_since(now).as_secs_f64()),
                warm_percent: endpoint.warm_up_factor(backend.spec.warm_up.as_ref(), now) * 100.0,
                outlier: ejection_state_name(&endpoint.ejection_state(), now),
                latency_ms: matches!(backend.spec.load_balancer, LoadBalancerSpec::PeakEwma)
                    .then(|| endpoint.estimated_latency(now).as_secs_f64() * 1e3),
            })
            .collect()
    };
    active_policy
        .backends
        .iter()
        .map(|backend| BackendView {
            name: backend.spec.name.to_string(),
            connections: backend.counters.connections(),
            health_ignored: backend.is_panicking(),
            endpoints: endpoints(backend),
        })
        .collect()
}

fn ejection_state_name(standing: &EjectionState, now: Instant) -> String {
    match standing {
        EjectionState::NotEjected => "in".to_owned(),
        EjectionState::Ejected { until } => format!(
            "ejected for {:.1} s",
            until.saturating_duration_since(now).as_secs_f64()
        ),
        EjectionState::Probation { .. } => "probation".to_owned(),
    }
}

pub(super) fn breakers(state: &State, now: Instant) -> Vec<BreakerView> {
    state
        .active_policy
        .load()
        .breakers
        .iter()
        .map(|state| breaker(state, now))
        .collect()
}

pub(super) fn breaker(breaker: &Arc<BreakerState>, now: Instant) -> BreakerView {
    let (snapshot, breaker_mode) = breaker.snapshot(now);
    BreakerView {
        name: breaker.name().to_string(),
        mode: mode_name(breaker_mode),
        state: breaker_state_name(snapshot.state),
        in_state_seconds: now.saturating_duration_since(snapshot.since).as_secs_f64(),
        calls: snapshot.counts.total(),
        failed: snapshot.counts.failures,
        slow: snapshot.counts.slow_calls,
        failure_rate_percent: snapshot.counts.failure_rate().percent(),
        slow_call_rate_percent: snapshot.counts.slow_call_rate().percent(),
        consecutive_failures: snapshot.consecutive_failures,
        admitted_percent: snapshot.admitted_ratio.percent(),
        refused: snapshot.rejected_calls,
        late_results: snapshot.late_results,
        next_change_in_seconds: snapshot
            .deadline
            .map(|at| at.saturating_duration_since(now).as_secs_f64()),
        not_closed_for_seconds: snapshot
            .tripped_since
            .map(|at| now.saturating_duration_since(at).as_secs_f64()),
    }
}

pub(super) fn limits(state: &State, now: Instant) -> LimitsView {
    let active_policy = state.active_policy.load();
    let concurrency = active_policy.concurrency_limits.iter().map(|limit| {
        let snapshot = limit.snapshot();
        ConcurrencyView {
            name: limit.name().to_string(),
            mode: mode_name(snapshot.mode),
            in_flight: snapshot.in_flight,
            working: snapshot.awaiting_response,
            max_in_flight: snapshot.config.max_in_flight.get(),
            pending: snapshot.pending,
            max_pending: snapshot.config.max_pending,
            refused: snapshot.rejected,
            adaptive: snapshot
                .adaptive
                .map(|(limit, component_mode)| AdaptiveView {
                    mode: mode_name(component_mode),
                    limit,
                }),
        }
    });
    let budgets = active_policy.retry_budgets.iter();
    LimitsView {
        concurrency: concurrency.collect(),
        retry_budgets: budgets
            .map(|budget| RetryBudgetView {
                name: budget.name().to_string(),
                remaining: budget.remaining(now),
                percent: budget.config().share.percent(),
            })
            .collect(),
        rate: active_policy.routes.iter().flat_map(rate_limits).collect(),
        admission: active_policy
            .admission_controls
            .iter()
            .map(|admission| {
                let (calls, rejection, component_mode) = admission.snapshot(now);
                AdmissionView {
                    name: admission.name().to_string(),
                    mode: mode_name(component_mode),
                    attempts: calls.total,
                    good: calls.successes,
                    rejection_percent: rejection.percent(),
                }
            })
            .collect(),
        global: active_policy
            .snapshot
            .global_rate_limit
            .as_ref()
            .map(|global| GlobalRateLimitView {
                engine: global.to_string(),
                is_connected: active_policy
                    .remote_limits
                    .as_ref()
                    .map(|remote| remote.engine().is_some()),
                fails_closed: global.fails_closed,
            }),
        protection: active_policy
            .snapshot
            .protection
            .as_ref()
            .map(|spec| ProtectionView {
                mode: mode_name(spec.mode),
                level: protection_level_name(state.protection.level()),
                normal_refused_percent: state.protection.shed_ratio() * 100.0,
                signals: state
                    .protection
                    .signal_readings()
                    .into_iter()
                    .map(|(signal, value, level)| SignalView {
                        name: protection_signal_name(signal),
                        percent: value * 100.0,
                        level: protection_level_name(level),
                    })
                    .collect(),
            }),
    }
}

pub(super) fn recoveries(state: &State) -> Vec<RecoveryView> {
    let active_policy = state.active_policy.load();
    let recent = state.telemetry.recent_events();
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
            .map(|event| format!("{} {}", Rfc3339(event.emitted_at), event.event))
            .collect()
    };
    let specs = active_policy.snapshot.recoveries.iter();
    specs
        .map(|spec| RecoveryView {
            name: spec.name.to_string(),
            mode: mode_name(spec.mode),
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

/// Sets the gauges whose values are sampled on each scrape instead of counted as they change.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating point, and these counts are far below 2^53"
)]
pub(super) fn record_gauges(state: &State, now: Instant) {
    let active_policy = state.active_policy.load();
    let metrics = &state.telemetry.metrics;
    metrics
        .gauge(name::IN_FLIGHT, &[])
        .set(state.drain.in_flight() as f64);
    metrics
        .gauge(name::ACCESS_LOG_DROPPED, &[])
        .set(state.telemetry.access_log.dropped_lines() as f64);
    for (listener, connections) in state.lifecycle.connections() {
        metrics
            .gauge(name::CONNECTIONS, &[("listener", &listener)])
            .set(f64::from(connections));
    }
    for backend in &active_policy.backends {
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
            .filter(|endpoint| endpoint.ejection_state() != EjectionState::NotEjected)
            .count();
        metrics
            .gauge(name::ENDPOINTS_EJECTED, &[("backend", backend_name)])
            .set(ejected as f64);
        metrics
            .gauge(name::ENDPOINTS_AVAILABLE, &[("backend", backend_name)])
            .set(backend.available_count() as f64);
    }
    for limit in &active_policy.concurrency_limits {
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
    for admission in &active_policy.admission_controls {
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
    for stale in &active_policy.stale_caches {
        let (responses, bytes) = stale.size();
        metrics
            .gauge(name::STALE_ADDRESSES, &[("store", stale.name())])
            .set(responses as f64);
        metrics
            .gauge(name::STALE_BYTES, &[("store", stale.name())])
            .set(bytes as f64);
    }
    for (signal, value, _) in state.protection.signal_readings() {
        metrics
            .gauge(
                name::PROTECTION_SIGNAL,
                &[("signal", protection_signal_name(signal))],
            )
            .set(value);
    }
    for budget in &active_policy.retry_budgets {
        metrics
            .gauge(name::RETRY_BUDGET, &[("budget", budget.name())])
            .set(f64::from(budget.remaining(now)));
    }
    for limit in active_policy
        .routes
        .iter()
        .flat_map(|route| &route.rate_limits)
    {
        let usage = limit.usage();
        let rule = [("rule", &**limit.name())];
        metrics
            .gauge(name::RATE_LIMIT_KEYS, &rule)
            .set(usage.keys as f64);
        metrics
            .gauge(name::RATE_LIMIT_OVERFLOW, &rule)
            .set(usage.overflowed_requests as f64);
        metrics
            .gauge(name::RATE_LIMIT_DELAYED, &rule)
            .set(usage.delayed_requests as f64);
        metrics
            .gauge(name::RATE_LIMIT_INSTANCES, &rule)
            .set(f64::from(limit.instances()));
        metrics
            .gauge(name::RATE_LIMIT_INVALID_COSTS, &rule)
            .set(usage.invalid_costs as f64);
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "Enforce",
        Mode::Shadow => "Shadow",
        Mode::Off => "Off",
    }
}

//! The metrics: their names, help texts and labels, in one place.
//!
//! Labels come from bounded sets only: routes, backends, breakers and rules of the policy, and closed lists. No path, client
//! key or address ever becomes a label. `docs/metrics.md` lists all of them, and a test compares it with this file.

use std::{
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, Histogram, Key, Label, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::{
    resilience::{
        breaker::StateKind,
        outlier::EjectionCause,
        retry::RetryStopReason,
        shed::{OverloadLevel, OverloadSignal},
    },
    telemetry::{event::Event, reason::Reason},
};

/// Bounds of the duration histograms in seconds: those of OpenTelemetry's HTTP conventions, and two below for a local app.
const DURATION_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

const METADATA: Metadata<'static> = Metadata::new("outrigger", metrics::Level::INFO, None);

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

macro_rules! names {
    ($($constant:ident = $name:literal, $kind:ident, $help:literal;)+) => {
        /// The names.
        pub mod name {
            $(#[doc = $help] pub const $constant: &str = $name;)+
        }

        /// Every metric with its kind and help text.
        pub const ALL: &[(&str, MetricKind, &str)] = &[$(($name, MetricKind::$kind, $help),)+];
    };
}

names! {
    REQUESTS = "outrigger_requests_total", Counter, "Requests that ended, by route and class of the status.";
    REQUEST_SECONDS = "outrigger_request_duration_seconds", Histogram, "From the head of a request to the end of its answer, by route.";
    GRPC_REQUESTS = "outrigger_grpc_requests_total", Counter, "Calls of gRPC that ended, by route and status.";
    REFUSALS = "outrigger_refusals_total", Counter, "Answers made by the sidecar, and answers that did not get through, by route and reason.";
    SHADOW_REFUSALS = "outrigger_shadow_refusals_total", Counter, "Refusals that shadow mode let pass, by route and reason.";
    ATTEMPTS = "outrigger_attempts_total", Counter, "Attempts at a backend, by backend and outcome.";
    ATTEMPT_SECONDS = "outrigger_attempt_duration_seconds", Histogram, "From the beginning of an attempt to the head of its answer, by backend.";
    RETRIES = "outrigger_retries_total", Counter, "Attempts after the first, by backend.";
    RETRIES_STOPPED = "outrigger_retries_stopped_total", Counter, "Failed attempts that were not repeated, by backend and why.";
    HEDGES = "outrigger_hedges_total", Counter, "Requests made because an answer was late, by backend and what became of them.";
    MIRRORED = "outrigger_mirrored_requests_total", Counter, "Copies of requests, by the backend that they are for and what became of them.";
    DEGRADED = "outrigger_degraded_requests_total", Counter, "Failures instead of which something else was answered, by route and what.";
    STALE_ADDRESSES = "outrigger_stale_addresses", Gauge, "Addresses of which earlier answers are kept, by store.";
    STALE_BYTES = "outrigger_stale_bytes", Gauge, "Bytes of earlier answers that are kept, by store.";
    PROTECTION_LEVEL = "outrigger_protection_level", Gauge, "How short of resources the instance is: 0 calm, 1 warning, 2 critical.";
    PROTECTION_SIGNAL = "outrigger_protection_signal_ratio", Gauge, "What a watched signal said last, by signal.";
    RETRY_BUDGET = "outrigger_retry_budget_remaining", Gauge, "Retries that could be made at once now, by budget.";
    IN_FLIGHT = "outrigger_requests_in_flight", Gauge, "Requests being served.";
    CONNECTIONS = "outrigger_connections", Gauge, "Connections of clients, by listener.";
    CONNECTIONS_REFUSED = "outrigger_connections_refused_total", Counter, "Connections closed at once because a listener had all it may, by listener.";
    CONNECTIONS_ABUSED = "outrigger_connections_abused_total", Counter, "Connections of HTTP/2 ended because their client gave up most of what it asked, by listener.";
    BACKEND_CONNECTIONS = "outrigger_backend_connections", Gauge, "Connections to a backend, busy and idle.";
    ENDPOINTS = "outrigger_backend_endpoints", Gauge, "Endpoints of a backend, by health.";
    ENDPOINTS_AVAILABLE = "outrigger_backend_endpoints_available", Gauge, "Endpoints of a backend that may be picked.";
    ENDPOINTS_EJECTED = "outrigger_backend_endpoints_ejected", Gauge, "Endpoints of a backend that outlier detection keeps out, or would in shadow mode.";
    EJECTIONS = "outrigger_endpoint_ejections_total", Counter, "Ejections of endpoints, by backend and cause.";
    DISCOVERY_CURRENT = "outrigger_discovery_current", Gauge, "1 if the endpoints of a backend were found at the last look, 0 if those known before are in force.";
    CERTIFICATE_NOT_AFTER = "outrigger_certificate_not_after_timestamp_seconds", Gauge, "When the first certificate of a listener or backend ends, in seconds since 1970.";
    CERTIFICATE_CURRENT = "outrigger_certificate_current", Gauge, "1 if the certificates in force are those in the files, 0 if those could not be read or do not fit together.";
    TLS_FAILURES = "outrigger_tls_handshake_failures_total", Counter, "Connections that ended before both sides agreed on TLS, by listener or backend.";
    LIMIT_IN_FLIGHT = "outrigger_limit_in_flight", Gauge, "Requests in flight under a concurrency limit.";
    LIMIT_MAX = "outrigger_limit_max_in_flight", Gauge, "Requests that may be in flight under a concurrency limit now.";
    LIMIT_ADAPTIVE = "outrigger_limit_adaptive", Gauge, "What an adaptive limit holds right now, whether or not it acts.";
    ADMISSION_REJECTION = "outrigger_admission_rejection_ratio", Gauge, "The share of requests that admission control refuses now, or would in shadow mode.";
    LIMIT_PENDING = "outrigger_limit_pending", Gauge, "Requests waiting under a concurrency limit.";
    BREAKER_STATE = "outrigger_breaker_state", Gauge, "The state of a breaker: 1 for the one it is in, 0 for the others.";
    BREAKER_TRANSITIONS = "outrigger_breaker_transitions_total", Counter, "Changes of state, by breaker and the state entered.";
    RATE_LIMIT_KEYS = "outrigger_rate_limit_keys", Gauge, "Keys that a rate limit tells apart now, by rule.";
    RATE_LIMIT_OVERFLOW = "outrigger_rate_limit_overflow", Gauge, "Requests since the start that had to share the overflow bucket of a rate limit, by rule.";
    RATE_LIMIT_DELAYED = "outrigger_rate_limit_delayed", Gauge, "Requests since the start that waited for their tokens under a rate limit, by rule.";
    RATE_LIMIT_INVALID_COSTS = "outrigger_rate_limit_unreadable_costs", Gauge, "Answers since the start whose cost under a rate limit is no whole number, by rule.";
    RATE_LIMIT_INSTANCES = "outrigger_rate_limit_instances", Gauge, "By how many instances a rate limit is divided here, by rule.";
    ENGINE_REQUESTS = "outrigger_global_rate_limit_requests_total", Counter, "Buckets that were asked for at the engine of `globalRateLimit`, by outcome.";
    ENGINE_CONNECTED = "outrigger_global_rate_limit_connected", Gauge, "1 if the engine of `globalRateLimit` can be asked; without it requests pass, or are refused with `failClosed`.";
    HEALTH_CHANGES = "outrigger_health_changes_total", Counter, "Changes of an endpoint's health, by backend and the health entered.";
    POLICY_GENERATION = "outrigger_policy_generation", Gauge, "The number of the policy set in force.";
    POLICY_CURRENT = "outrigger_policy_current", Gauge, "1 if the policy in force is the newest, 0 if a newer one was refused.";
    POLICY_RELOADS = "outrigger_policy_reloads_total", Counter, "Sets of policies that were applied or refused.";
    READY = "outrigger_ready", Gauge, "1 if the instance is ready.";
    DRAINING = "outrigger_draining", Gauge, "1 if the instance is leaving.";
    ENDPOINTS_MARKED_DRAINING = "outrigger_endpoint_departures_total", Counter, "Endpoints that said that they are leaving.";
    RESELECTED_REQUESTS = "outrigger_requests_repicked_total", Counter, "Attempts that an endpoint which is leaving or new did not look at, and that went to another.";
    RECOVERY_ACTIONS = "outrigger_recovery_actions_total", Counter, "What recoveries did, by recovery, action and result.";
    ACCESS_LOG_DROPPED = "outrigger_access_log_dropped", Gauge, "Access-log lines since the start that were dropped because the reader is too slow.";
    BUILD_INFO = "outrigger_build_info", Gauge, "1, with the version as a label.";
}

/// The registry, and the making of handles.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let builder = [name::REQUEST_SECONDS, name::ATTEMPT_SECONDS]
            .into_iter()
            .fold(PrometheusBuilder::new(), |builder, name| {
                builder
                    .set_buckets_for_metric(
                        Matcher::Full(name.to_owned()),
                        DURATION_BUCKETS_SECONDS,
                    )
                    .expect("the list of bounds is not empty")
            });
        let recorder = builder.build_recorder();
        for (name, kind, help) in ALL {
            let unit = name.ends_with("_seconds").then_some(Unit::Seconds);
            match kind {
                MetricKind::Counter => {
                    recorder.describe_counter((*name).into(), unit, (*help).into())
                }
                MetricKind::Gauge => recorder.describe_gauge((*name).into(), unit, (*help).into()),
                MetricKind::Histogram => {
                    recorder.describe_histogram((*name).into(), unit, (*help).into())
                }
            }
        }
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
        };
        metrics
            .gauge(name::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        metrics
    }

    /// A handle on a counter.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&metric_key(name, labels), &METADATA)
    }

    /// A handle on a gauge.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder
            .register_gauge(&metric_key(name, labels), &METADATA)
    }

    /// A handle on a histogram.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder
            .register_histogram(&metric_key(name, labels), &METADATA)
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Empties the buffers of the histograms; to be called every few seconds, or they grow until the next scrape.
    pub fn run_maintenance(&self) {
        self.handle.run_upkeep();
    }

    /// Counts an event.
    pub(super) fn record_event(&self, event: &Event) {
        match event {
            Event::PolicyApplied { generation, .. } => {
                self.counter(name::POLICY_RELOADS, &[("result", "applied")])
                    .increment(1);
                #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 reloads")]
                self.gauge(name::POLICY_GENERATION, &[])
                    .set(*generation as f64);
                self.gauge(name::POLICY_CURRENT, &[]).set(1.0);
            }
            Event::PolicyRestored { .. } => self.gauge(name::POLICY_CURRENT, &[]).set(1.0),
            Event::PolicyRefused { .. } => {
                self.counter(name::POLICY_RELOADS, &[("result", "refused")])
                    .increment(1);
                self.gauge(name::POLICY_CURRENT, &[]).set(0.0);
            }
            Event::BreakerChanged {
                breaker,
                transition,
            } => {
                self.counter(
                    name::BREAKER_TRANSITIONS,
                    &[
                        ("breaker", breaker),
                        ("to", breaker_state_name(transition.to)),
                    ],
                )
                .increment(1);
                self.set_breaker_state(breaker, transition.to);
            }
            Event::EndpointDraining { backend, .. } => self
                .counter(name::ENDPOINTS_MARKED_DRAINING, &[("backend", backend)])
                .increment(1),
            Event::HealthChanged {
                backend, health, ..
            } => {
                self.counter(
                    name::HEALTH_CHANGES,
                    &[("backend", backend), ("to", health_name(*health))],
                )
                .increment(1);
            }
            Event::ReadinessChanged { is_ready, .. } => self
                .gauge(name::READY, &[])
                .set(f64::from(u8::from(*is_ready))),
            Event::DrainStarted { .. } => self.gauge(name::DRAINING, &[]).set(1.0),
            Event::RecoveryActed {
                recovery,
                action,
                is_shadow,
                result,
                ..
            } => {
                let result = match result {
                    _ if *is_shadow => "shadow",
                    Ok(_) => "done",
                    Err(_) => "failed",
                };
                self.counter(
                    name::RECOVERY_ACTIONS,
                    &[
                        ("recovery", recovery),
                        ("action", action),
                        ("result", result),
                    ],
                )
                .increment(1);
            }
            Event::RecoveryCapped { recovery } => {
                self.counter(
                    name::RECOVERY_ACTIONS,
                    &[
                        ("recovery", recovery),
                        ("action", "none"),
                        ("result", "capped"),
                    ],
                )
                .increment(1);
            }
            Event::EndpointEjected {
                backend,
                cause,
                is_shadow: false,
                ..
            } => self
                .counter(
                    name::EJECTIONS,
                    &[("backend", backend), ("cause", ejection_cause_name(*cause))],
                )
                .increment(1),
            Event::Started { .. }
            | Event::HandedOver { .. }
            | Event::EndpointDrainingCleared { .. }
            | Event::EndpointEjected { .. }
            | Event::EndpointReadmitted { .. }
            | Event::EndpointsChanged { .. }
            | Event::DiscoveryFailed { .. }
            | Event::GlobalLimitsLost { .. }
            | Event::GlobalLimitsRestored { .. }
            | Event::CertificateChanged { .. }
            | Event::CertificateRefused { .. }
            | Event::CertificateExpiring { .. }
            | Event::DiscoveryRestored { .. }
            | Event::ListenerBound { .. }
            | Event::ListenerClosed { .. }
            | Event::DrainEnded { .. }
            | Event::RecoveryUndone { .. }
            | Event::AdminActed { .. }
            | Event::ProtectionChanged { .. }
            | Event::PanicChanged { .. } => {}
        }
    }

    /// Shows whether the endpoints of a backend were found at the last look.
    pub fn set_discovery_current(&self, backend: &str, is_current: bool) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(f64::from(u8::from(is_current)));
    }

    /// Shows that a backend's endpoints are no longer looked for: not a number, so that no alert compares it.
    pub fn clear_discovery_current(&self, backend: &str) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(f64::NAN);
    }

    /// Shows that an owner has no certificates any more.
    pub fn clear_certificate(&self, owner: &str) {
        for gauge in [name::CERTIFICATE_NOT_AFTER, name::CERTIFICATE_CURRENT] {
            self.gauge(gauge, &[("owner", owner)]).set(f64::NAN);
        }
    }

    /// Shows when the certificates of a listener or backend end, and whether they are those in the files.
    pub fn set_certificate(&self, owner: &str, not_after: Option<SystemTime>, is_current: bool) {
        if let Some(end) = not_after {
            self.gauge(name::CERTIFICATE_NOT_AFTER, &[("owner", owner)])
                .set(
                    end.duration_since(UNIX_EPOCH)
                        .unwrap_or_default()
                        .as_secs_f64(),
                );
        }
        self.gauge(name::CERTIFICATE_CURRENT, &[("owner", owner)])
            .set(f64::from(u8::from(is_current)));
    }

    /// Shows the state of a breaker.
    pub fn set_breaker_state(&self, breaker: &str, state: StateKind) {
        self.write_breaker_state(breaker, Some(state));
    }

    /// Shows that a breaker is in no state any more.
    pub fn clear_breaker_state(&self, breaker: &str) {
        self.write_breaker_state(breaker, None);
    }

    fn write_breaker_state(&self, breaker: &str, state: Option<StateKind>) {
        for kind in [
            StateKind::Closed,
            StateKind::Open,
            StateKind::HalfOpen,
            StateKind::ForcedOpen,
            StateKind::Disabled,
        ] {
            self.gauge(
                name::BREAKER_STATE,
                &[("breaker", breaker), ("state", breaker_state_name(kind))],
            )
            .set(f64::from(u8::from(Some(kind) == state)));
        }
    }
}

/// The handles of a route.
#[derive(Debug)]
pub struct RouteMetrics {
    requests_by_status_class: [Counter; 6],
    duration_seconds: Histogram,
    refusals: Vec<OnceLock<Counter>>,
    shadow_refusals: Vec<OnceLock<Counter>>,
    grpc_calls_by_status: [OnceLock<Counter>; 17],
    route: String,
}

impl RouteMetrics {
    /// Makes the handles; those of reasons are made when first needed.
    #[must_use]
    pub fn new(metrics: &Metrics, route: &str, direction: &str) -> Self {
        let class_counter = |class_counter: &str| {
            metrics.counter(
                name::REQUESTS,
                &[
                    ("route", route),
                    ("direction", direction),
                    ("status", class_counter),
                ],
            )
        };
        let slots = || Reason::ALL.iter().map(|_| OnceLock::new()).collect();
        Self {
            requests_by_status_class: ["none", "1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(class_counter),
            duration_seconds: metrics.histogram(
                name::REQUEST_SECONDS,
                &[("route", route), ("direction", direction)],
            ),
            refusals: slots(),
            shadow_refusals: slots(),
            grpc_calls_by_status: std::array::from_fn(|_| OnceLock::new()),
            route: route.to_owned(),
        }
    }

    /// Counts a request that ended; a status of 0 means that nothing was answered.
    pub fn record_request(&self, status: u16, seconds: f64) {
        self.requests_by_status_class[usize::from(status / 100).min(5)].increment(1);
        self.duration_seconds.record(seconds);
    }

    /// Counts a call of gRPC that ended.
    pub fn record_grpc_call(&self, metrics: &Metrics, status: u8) {
        let register = || {
            metrics.counter(
                name::GRPC_REQUESTS,
                &[("route", &self.route), ("code", &status.to_string())],
            )
        };
        if let Some(slot) = self.grpc_calls_by_status.get(usize::from(status)) {
            slot.get_or_init(register).increment(1);
        }
    }

    /// Counts an answer of our own, or one that did not get through.
    pub fn record_refusal(&self, metrics: &Metrics, reason: Reason) {
        self.increment_for_reason(&self.refusals, metrics, name::REFUSALS, reason);
    }

    /// Counts a refusal that shadow mode let pass.
    pub fn record_shadow_refusal(&self, metrics: &Metrics, reason: Reason) {
        self.increment_for_reason(
            &self.shadow_refusals,
            metrics,
            name::SHADOW_REFUSALS,
            reason,
        );
    }

    /// Counts what was answered instead of a failure.
    pub fn record_degradation(&self, metrics: &Metrics, outcome: DegradationOutcome) {
        let fallback = match outcome {
            DegradationOutcome::Stale => "stale",
            DegradationOutcome::Response => "response",
            DegradationOutcome::Backend => "backend",
            DegradationOutcome::Shadow => "shadow",
        };
        metrics
            .counter(
                name::DEGRADED,
                &[("route", &self.route), ("with", fallback)],
            )
            .increment(1);
    }

    fn increment_for_reason(
        &self,
        slots: &[OnceLock<Counter>],
        metrics: &Metrics,
        name: &'static str,
        reason: Reason,
    ) {
        slots[reason.index()]
            .get_or_init(|| {
                metrics.counter(name, &[("route", &self.route), ("reason", reason.token())])
            })
            .increment(1);
    }
}

/// How an attempt ended, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// An answer that is no failure.
    Success,
    /// An answer that is a failure.
    Failure,
    /// Asked too much.
    Throttled,
    /// No connection.
    ConnectFailure,
    /// Cut off.
    Reset,
    /// No answer in time.
    Timeout,
    /// The client left.
    Cancelled,
}

/// What became of the wish to ask once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeOutcome {
    /// A request went out.
    Sent,
    /// Its answer came first.
    Won,
    /// The retry budget had none.
    BudgetExhausted,
    /// The policy is in shadow mode.
    Shadow,
}

/// What became of a copy for a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorOutcome {
    /// It was answered.
    Sent,
    /// It was not.
    Failed,
    /// There was none: too many were out, or the body was too long or too late.
    Skipped,
}

/// What is answered instead of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DegradationOutcome {
    /// An earlier answer.
    Stale,
    /// What the policy says.
    Response,
    /// What another backend says.
    Backend,
    /// Nothing else: the policy is in shadow mode.
    Shadow,
}

/// The handles of a backend.
#[derive(Debug)]
pub struct BackendMetrics {
    attempts: [Counter; 7],
    attempt_seconds: Histogram,
    /// Attempts after the first.
    pub retries: Counter,
    /// Attempts that were not looked at, and went elsewhere.
    pub reselected: Counter,
    retry_stops: [Counter; 10],
    hedges: [Counter; 4],
    mirrored: [Counter; 3],
}

impl BackendMetrics {
    /// Makes the handles.
    #[must_use]
    pub fn new(metrics: &Metrics, backend: &str) -> Self {
        let attempt_counter = |outcome: &str| {
            metrics.counter(
                name::ATTEMPTS,
                &[("backend", backend), ("outcome", outcome)],
            )
        };
        let hedge_counter = |result: &str| {
            metrics.counter(name::HEDGES, &[("backend", backend), ("result", result)])
        };
        let mirror_counter = |result: &str| {
            metrics.counter(name::MIRRORED, &[("backend", backend), ("result", result)])
        };
        let retry_stop_counter = |stop: &str| {
            metrics.counter(
                name::RETRIES_STOPPED,
                &[("backend", backend), ("why", stop)],
            )
        };
        Self {
            attempts: [
                "success",
                "failure",
                "throttled",
                "connect_failure",
                "reset",
                "timeout",
                "cancelled",
            ]
            .map(attempt_counter),
            attempt_seconds: metrics.histogram(name::ATTEMPT_SECONDS, &[("backend", backend)]),
            retries: metrics.counter(name::RETRIES, &[("backend", backend)]),
            reselected: metrics.counter(name::RESELECTED_REQUESTS, &[("backend", backend)]),
            retry_stops: [
                "not_triggered",
                "not_idempotent",
                "already_retried",
                "body_not_replayable",
                "attempts_exhausted",
                "no_time_left",
                "budget_spent",
                "too_many_in_flight",
                "breaker_open",
                "shadow",
            ]
            .map(retry_stop_counter),
            hedges: ["sent", "won", "no_budget", "shadow"].map(hedge_counter),
            mirrored: ["sent", "failed", "skipped"].map(mirror_counter),
        }
    }

    /// Counts an attempt.
    pub fn record_attempt(&self, outcome: AttemptOutcome, seconds: f64) {
        let index = match outcome {
            AttemptOutcome::Success => 0,
            AttemptOutcome::Failure => 1,
            AttemptOutcome::Throttled => 2,
            AttemptOutcome::ConnectFailure => 3,
            AttemptOutcome::Reset => 4,
            AttemptOutcome::Timeout => 5,
            AttemptOutcome::Cancelled => 6,
        };
        self.attempts[index].increment(1);
        self.attempt_seconds.record(seconds);
    }

    /// Counts what became of the wish to ask once more.
    pub fn record_hedge(&self, outcome: HedgeOutcome) {
        let index = match outcome {
            HedgeOutcome::Sent => 0,
            HedgeOutcome::Won => 1,
            HedgeOutcome::BudgetExhausted => 2,
            HedgeOutcome::Shadow => 3,
        };
        self.hedges[index].increment(1);
    }

    /// Counts what became of a copy.
    pub fn record_mirror(&self, outcome: MirrorOutcome) {
        let index = match outcome {
            MirrorOutcome::Sent => 0,
            MirrorOutcome::Failed => 1,
            MirrorOutcome::Skipped => 2,
        };
        self.mirrored[index].increment(1);
    }

    /// Counts a failed attempt that was not repeated.
    pub fn record_retry_stop(&self, reason: RetryStopReason) {
        self.retry_stops[reason as usize].increment(1);
    }
}

/// The word for a breaker's state, in labels, views and the log.
#[must_use]
pub fn breaker_state_name(state: StateKind) -> &'static str {
    match state {
        StateKind::Closed => "closed",
        StateKind::Open => "open",
        StateKind::HalfOpen => "half_open",
        StateKind::ForcedOpen => "forced_open",
        StateKind::Disabled => "disabled",
    }
}

/// The word for a signal of the protection, in labels and views.
#[must_use]
pub fn protection_signal_name(signal: OverloadSignal) -> &'static str {
    match signal {
        OverloadSignal::Cpu => "cpu",
        OverloadSignal::Memory => "memory",
        OverloadSignal::CpuPressure => "cpu_pressure",
        OverloadSignal::MemoryPressure => "memory_pressure",
    }
}

/// The word for a level of the protection, in views.
#[must_use]
pub fn protection_level_name(level: OverloadLevel) -> &'static str {
    match level {
        OverloadLevel::Normal => "calm",
        OverloadLevel::Warning => "warning",
        OverloadLevel::Critical => "critical",
    }
}

/// The word for the cause of an ejection, in labels.
fn ejection_cause_name(cause: EjectionCause) -> &'static str {
    match cause {
        EjectionCause::Consecutive5xx(_) => "consecutive_5xx",
        EjectionCause::ConsecutiveGatewayErrors(_) => "consecutive_gateway_errors",
        EjectionCause::ConsecutiveLocalOriginFailures(_) => "consecutive_local_origin_failures",
        EjectionCause::SuccessRate { .. } => "success_rate",
        EjectionCause::FailurePercentage { .. } => "failure_percentage",
        EjectionCause::HighLatency { .. } => "slow",
        EjectionCause::FailedProbe => "probe",
        EjectionCause::SlowProbe { .. } => "slow_probe",
    }
}

/// The word for an endpoint's health, in labels and views.
#[must_use]
pub fn health_name(health: crate::resilience::health::Health) -> &'static str {
    use crate::resilience::health::Health;
    match health {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

fn metric_key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

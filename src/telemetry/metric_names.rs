//! Defines the name, kind and help text of every metric, in one list.
//!
//! Labels come from bounded sets only: routes, backends, breakers and rules of the policy, and
//! closed enums. A path, client key or client address is never a label. `docs/metrics.md` lists all
//! metrics, and a test compares it with this list. The module does not know when a metric changes.

/// Kind of a metric in the Prometheus format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A count of occurrences that only increases.
    Counter,
    /// A current value that increases and decreases.
    Gauge,
    /// A distribution of observed values over buckets.
    Histogram,
}

macro_rules! names {
    ($($constant:ident = $name:literal, $kind:ident, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// Every metric, with its name, kind and help text.
        pub const ALL: &[(&str, MetricKind, &str)] = &[$(($name, MetricKind::$kind, $help),)+];
    };
}

names! {
    REQUESTS = "outrigger_requests_total", Counter,
        "Counts requests that ended, by route and status class.";
    REQUEST_SECONDS = "outrigger_request_duration_seconds", Histogram,
        "Measures the time from the request head to the end of the response, by route.";
    GRPC_REQUESTS = "outrigger_grpc_requests_total", Counter,
        "Counts gRPC calls that ended, by route and status.";
    REFUSALS = "outrigger_refusals_total", Counter,
        "Counts responses that the sidecar generated, and responses that the client did not \
         receive completely, by route and reason.";
    SHADOW_REFUSALS = "outrigger_shadow_refusals_total", Counter,
        "Counts rejections that were not enforced because of shadow mode, by route and reason.";
    ATTEMPTS = "outrigger_attempts_total", Counter,
        "Counts attempts at a backend, by backend and outcome.";
    ATTEMPT_SECONDS = "outrigger_attempt_duration_seconds", Histogram,
        "Measures the time from the start of an attempt to the response head, without the time \
         that the client takes to send its request, by backend.";
    RETRIES = "outrigger_retries_total", Counter,
        "Counts retries of failed attempts, without hedges, by backend.";
    RETRIES_STOPPED = "outrigger_retries_stopped_total", Counter,
        "Counts failed attempts that were not retried, by backend and reason.";
    HEDGES = "outrigger_hedges_total", Counter,
        "Counts hedging decisions for late responses, by backend and result.";
    MIRRORED = "outrigger_mirrored_requests_total", Counter,
        "Counts mirrored copies of requests, by the backend that receives them and by result.";
    DEGRADED = "outrigger_degraded_requests_total", Counter,
        "Counts failures that were replaced by another response, or would be in shadow mode, by \
         route and kind of replacement.";
    STALE_ADDRESSES = "outrigger_stale_addresses", Gauge,
        "Reports the number of URLs with cached responses, by store.";
    STALE_BYTES = "outrigger_stale_bytes", Gauge,
        "Reports the number of bytes that cached responses use, by store.";
    MEMORY_BUDGET = "outrigger_memory_budget_bytes", Gauge,
        "Reports the memory budget of the data plane.";
    MEMORY_USED = "outrigger_memory_used_bytes", Gauge,
        "Reports the number of bytes that the data plane holds.";
    MEMORY_LEVEL = "outrigger_memory_level", Gauge,
        "Reports the level of memory pressure: 0 for normal, 1 for elevated, 2 for high, 3 for \
         critical.";
    MEMORY_MEASURES = "outrigger_memory_measures_total", Counter,
        "Counts measures against memory pressure, by measure.";
    PROTECTION_LEVEL = "outrigger_protection_level", Gauge,
        "Reports the overload level: 0 for normal, 1 for warning, 2 for critical.";
    PROTECTION_SIGNAL = "outrigger_protection_signal_ratio", Gauge,
        "Reports the last reading of a watched resource, by signal.";
    RETRY_BUDGET = "outrigger_retry_budget_remaining", Gauge,
        "Reports the number of retries that a retry budget allows at this moment, by budget.";
    IN_FLIGHT = "outrigger_requests_in_flight", Gauge,
        "Reports the number of requests in flight.";
    CONNECTIONS = "outrigger_connections", Gauge,
        "Reports the number of client connections, by listener.";
    CONNECTIONS_REFUSED = "outrigger_connections_refused_total", Counter,
        "Counts client connections that were closed at once because the listener had reached its \
         connection limit, by listener.";
    CONNECTIONS_ABUSED = "outrigger_connections_abused_total", Counter,
        "Counts HTTP/2 connections that were closed because the client cancelled most of its \
         requests, by listener.";
    BACKEND_CONNECTIONS = "outrigger_backend_connections", Gauge,
        "Reports the number of busy and idle connections to endpoints, by backend.";
    ENDPOINTS = "outrigger_backend_endpoints", Gauge,
        "Reports the number of endpoints, by backend and health.";
    ENDPOINTS_AVAILABLE = "outrigger_backend_endpoints_available", Gauge,
        "Reports the number of endpoints that may be selected, by backend.";
    ENDPOINTS_EJECTED = "outrigger_backend_endpoints_ejected", Gauge,
        "Reports the number of endpoints that outlier detection ejects, or would eject in shadow \
         mode, by backend.";
    EJECTIONS = "outrigger_endpoint_ejections_total", Counter,
        "Counts ejections of endpoints, by backend and cause.";
    DISCOVERY_CURRENT = "outrigger_discovery_current", Gauge,
        "Reports 1 if the last discovery of a backend's endpoints succeeded, and 0 if earlier \
         results are still active.";
    CERTIFICATE_NOT_AFTER = "outrigger_certificate_not_after_timestamp_seconds", Gauge,
        "Reports the earliest expiry among the certificates of a listener or backend, in seconds \
         since 1970.";
    CERTIFICATE_CURRENT = "outrigger_certificate_current", Gauge,
        "Reports 1 if the active certificates are those in the files, and 0 if the files are \
         unreadable or cannot be used.";
    TLS_FAILURES = "outrigger_tls_handshake_failures_total", Counter,
        "Counts connections that failed during the TLS handshake, by listener or backend.";
    LIMIT_IN_FLIGHT = "outrigger_limit_in_flight", Gauge,
        "Reports the number of requests in flight under a concurrency limit.";
    LIMIT_MAX = "outrigger_limit_max_in_flight", Gauge,
        "Reports the number of requests that a concurrency limit currently admits at once.";
    LIMIT_ADAPTIVE = "outrigger_limit_adaptive", Gauge,
        "Reports the current value of an adaptive concurrency limit, whether or not it is \
         enforced.";
    ADMISSION_REJECTION = "outrigger_admission_rejection_ratio", Gauge,
        "Reports the share of requests that admission control currently rejects, or would reject \
         in shadow mode.";
    LIMIT_PENDING = "outrigger_limit_pending", Gauge,
        "Reports the number of requests that wait in the queue of a concurrency limit.";
    BREAKER_STATE = "outrigger_breaker_state", Gauge,
        "Reports 1 for the current state of a breaker, and 0 for the other states.";
    BREAKER_TRANSITIONS = "outrigger_breaker_transitions_total", Counter,
        "Counts state transitions, by breaker and new state.";
    RATE_LIMIT_KEYS = "outrigger_rate_limit_keys", Gauge,
        "Reports the number of keys that a rate limit currently tracks, by rule.";
    RATE_LIMIT_OVERFLOW = "outrigger_rate_limit_overflow_total", Counter,
        "Counts requests that had to share the overflow bucket of a rate limit, by rule.";
    RATE_LIMIT_DELAYED = "outrigger_rate_limit_delayed_total", Counter,
        "Counts requests that waited for their tokens under a rate limit, by rule.";
    RATE_LIMIT_INVALID_COSTS = "outrigger_rate_limit_unreadable_costs_total", Counter,
        "Counts responses whose cost under a rate limit was not a whole number, by rule.";
    RATE_LIMIT_INSTANCES = "outrigger_rate_limit_instances", Gauge,
        "Reports the number of instances by which a rate limit is divided, by rule.";
    ENGINE_REQUESTS = "outrigger_global_rate_limit_requests_total", Counter,
        "Counts buckets that were requested from the engine of `globalRateLimit`, by outcome.";
    ENGINE_CONNECTED = "outrigger_global_rate_limit_connected", Gauge,
        "Reports 1 if the engine of `globalRateLimit` is connected, and 0 otherwise.";
    HEALTH_CHANGES = "outrigger_health_changes_total", Counter,
        "Counts changes of an endpoint's health, by backend and new health.";
    POLICY_GENERATION = "outrigger_policy_generation", Gauge,
        "Reports the generation number of the active policy set.";
    POLICY_CURRENT = "outrigger_policy_current", Gauge,
        "Reports 1 if the active policy set is the newest, and 0 if a newer one was rejected.";
    POLICY_RELOADS = "outrigger_policy_reloads_total", Counter,
        "Counts policy sets that were applied or rejected, by result.";
    READY = "outrigger_ready", Gauge,
        "Reports 1 if the instance is ready.";
    DRAINING = "outrigger_draining", Gauge,
        "Reports 1 if the instance is draining.";
    ENDPOINTS_MARKED_DRAINING = "outrigger_endpoint_departures_total", Counter,
        "Counts endpoints that announced a drain, by backend.";
    RESELECTED_REQUESTS = "outrigger_requests_repicked_total", Counter,
        "Counts attempts that a draining or new endpoint did not process and that were sent to \
         another endpoint, by backend.";
    RECOVERY_ACTIONS = "outrigger_recovery_actions_total", Counter,
        "Counts recovery actions, by recovery, action and result.";
    ACCESS_LOG_DROPPED = "outrigger_access_log_dropped_total", Counter,
        "Counts access log lines that were dropped because the reader was too slow.";
    BUILD_INFO = "outrigger_build_info", Gauge,
        "Reports 1, with the version as a label.";
}

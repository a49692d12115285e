//! Limits on requests in flight, queued requests and connections.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        mode::ModeSetting,
        report::{DiagnosticReport, FieldLocation},
        sections::{
            description::{Description, describe_state},
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{PolicyDuration, duration_or},
    },
    resilience::{
        Mode,
        adaptive::{AdaptiveConfig, LimitAlgorithm},
        concurrency::ConcurrencyConfig,
    },
};

/// Limits on requests in flight, queued requests and connections to a backend.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Whether the limits are enforced. Shadow only counts the requests that would be queued or
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of connections to the backend, busy and idle, at least 1. A request that
    /// needs a further connection is rejected with 503. A worker shares its HTTP/2 connections
    /// among requests. To keep all workers busy, allow at least one connection per worker and
    /// endpoint. Default 1024.
    pub max_connections: Option<u32>,
    /// Maximum number of connections to one endpoint, busy and idle, at least 1. While all of
    /// them are busy, the endpoint is not selected. Default `maxConnections`.
    pub max_connections_per_endpoint: Option<u32>,
    /// Maximum number of requests in flight, at least 1. Further requests wait in the queue.
    /// Default 1024.
    pub max_parallel_requests: Option<u32>,
    /// Maximum number of requests in the queue. Further requests are rejected with 503. Default
    /// 256, or 0 with an adaptive limit in Enforce mode, because a wait in the queue adds
    /// latency. A short queue absorbs bursts while an adaptive limit is still low.
    pub max_pending_requests: Option<u32>,
    /// Maximum time that a request waits in the queue. It is then rejected with 503. Default
    /// 1s.
    pub pending_timeout: Option<PolicyDuration>,
    /// Maximum number of requests that retry at the same time. Default a fifth of
    /// `maxParallelRequests`, at least 3.
    pub max_parallel_retries: Option<u32>,
    /// Limit that adapts to the latency of the backend and lowers `maxParallelRequests`.
    /// Default none.
    pub adaptive: Option<AdaptiveConcurrency>,
}

/// Concurrency limit that adapts to the latency of the backend. Requests above the limit are
/// queued or rejected as with `maxParallelRequests`.
///
/// A request counts towards this limit until its response starts, and towards
/// `maxParallelRequests` until its response ends. The limit starts at `minLimit` (AIMD: at 20)
/// and grows quickly while the latency does not rise.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// Whether the limit is enforced. Shadow only counts the requests that would be rejected.
    /// Default Enforce.
    pub mode: ModeSetting,
    /// Algorithm that adjusts the limit. Default Gradient2.
    pub algorithm: AdaptiveAlgorithm,
    /// Lower bound of the limit in requests, at least 1. Default 4, or `maxParallelRequests` if
    /// that is lower.
    pub min_limit: Option<u32>,
    /// Upper bound of the limit in requests, from `minLimit` to `maxParallelRequests`. Default
    /// `maxParallelRequests`.
    pub max_limit: Option<u32>,
}

/// Algorithm that adjusts a concurrency limit. The algorithms are those of Netflix's
/// concurrency-limits, but the latency during an overload does not become the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum AdaptiveAlgorithm {
    /// Lowers the limit while the latency is above 1.5 times the long-term baseline.
    #[default]
    Gradient2,
    /// Estimates the queue length from the latency above the minimum, and adjusts the limit to
    /// it.
    Vegas,
    /// Raises the limit by one without drops, and lowers it by a tenth on timeouts, 429 and
    /// 503. It ignores latency.
    AIMD,
}
/// Limits on the requests in flight to a backend, and on its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimitsSpec {
    /// Whether the limits are enforced, only logged, or off.
    pub mode: Mode,
    /// Maximum number of requests in flight and of pending requests.
    pub concurrency: ConcurrencyConfig,
    /// Adaptive limit below `max_in_flight`, with its own mode, if configured.
    pub adaptive: Option<(AdaptiveConfig, Mode)>,
    /// Maximum time that a request stays pending before it is rejected.
    pub pending_timeout: Duration,
    /// Maximum number of connections to the backend.
    pub max_connections: u32,
    /// Maximum number of connections to one endpoint.
    pub max_connections_per_endpoint: u32,
    /// Maximum number of concurrent retries.
    pub max_parallel_retries: u32,
    /// Name of the state; sections with the same name share the limits.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for ConnectionLimits {
    const KEY: &'static str = "connectionLimits";
    type Spec = Option<ConnectionLimitsSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<ConnectionLimitsSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found.filter(|found| found.section.mode != ModeSetting::Off)?;
        let mut at_least_one = |key, value, default| {
            context
                .report
                .require_at_least_one(&at, key, value, default)
        };
        let max_in_flight =
            at_least_one("maxParallelRequests", section.max_parallel_requests, 1024);
        let max_connections = at_least_one("maxConnections", section.max_connections, 1024).get();
        let max_connections_per_endpoint = at_least_one(
            "maxConnectionsPerEndpoint",
            section.max_connections_per_endpoint,
            max_connections,
        );
        let adaptive = section
            .adaptive
            .as_ref()
            .filter(|adaptive| adaptive.mode != ModeSetting::Off)
            .map(|adaptive| {
                let config = adaptive.compile(&at.key("adaptive"), max_in_flight, context.report);
                (config, adaptive.mode.mode())
            });
        // A queue in front of a limit that keeps latency low would add latency again.
        let default_max_pending = match adaptive {
            Some((_, Mode::Enforce)) => 0,
            _ => 256,
        };
        Some(ConnectionLimitsSpec {
            mode: section.mode.mode(),
            adaptive,
            concurrency: ConcurrencyConfig {
                max_in_flight,
                max_pending: section.max_pending_requests.unwrap_or(default_max_pending),
            },
            pending_timeout: duration_or(section.pending_timeout, Duration::from_secs(1)),
            max_connections,
            max_connections_per_endpoint: max_connections_per_endpoint.get(),
            max_parallel_retries: section
                .max_parallel_retries
                .unwrap_or_else(|| (max_in_flight.get() / 5).max(3)),
            name: origin.state_name(context.backend),
            origin,
        })
    }

    fn describe(spec: &Option<ConnectionLimitsSpec>) -> Vec<Description> {
        let describe = |limits: &ConnectionLimitsSpec| {
            let description = Description::default()
                .with("mode", limits.mode.name())
                .with("maxParallelRequests", limits.concurrency.max_in_flight)
                .with("maxPendingRequests", limits.concurrency.max_pending)
                .with("pendingTimeout", PolicyDuration(limits.pending_timeout))
                .with("maxConnections", limits.max_connections)
                .with(
                    "maxConnectionsPerEndpoint",
                    limits.max_connections_per_endpoint,
                )
                .with("maxParallelRetries", limits.max_parallel_retries);
            let description = match limits.adaptive {
                None => description,
                Some((config, mode)) => description
                    .with("adaptive.mode", mode.name())
                    .with("adaptive.algorithm", config.algorithm)
                    .with("adaptive.minLimit", config.min_limit)
                    .with("adaptive.maxLimit", config.max_limit),
            };
            description
                .with("state", &limits.name)
                .with_origin(&limits.origin)
        };
        spec.iter().map(describe).collect()
    }

    fn describe_state_change(
        old: &Option<ConnectionLimitsSpec>,
        new: &Option<ConnectionLimitsSpec>,
    ) -> String {
        let (Some(old), Some(new)) = (old, new) else {
            return String::new();
        };
        let adaptive_state = |limits: &ConnectionLimitsSpec| {
            let adaptive = limits.adaptive;
            adaptive.map(|(config, mode)| (config.algorithm, mode))
        };
        let is_retained = adaptive_state(old) == adaptive_state(new);
        describe_state(
            &old.name,
            &new.name,
            is_retained,
            [
                "requests in flight still count",
                "requests in flight still count, the adaptive limit is reset",
            ],
        )
    }
}

impl AdaptiveConcurrency {
    fn compile(
        &self,
        at: &FieldLocation<'_>,
        max_in_flight: NonZeroU32,
        report: &mut DiagnosticReport,
    ) -> AdaptiveConfig {
        let default_min_limit = 4.min(max_in_flight.get());
        let min_limit = report
            .require_at_least_one(at, "minLimit", self.min_limit, default_min_limit)
            .get();
        let max_limit = self.max_limit.unwrap_or(max_in_flight.get());
        if max_limit > max_in_flight.get() || max_limit < min_limit {
            let hint = format!("write a number from {min_limit} to {max_in_flight}");
            report
                .error(
                    &at.key("maxLimit"),
                    "`maxLimit` must be between `minLimit` and `maxParallelRequests`",
                )
                .hint(hint);
        }
        let algorithm = match self.algorithm {
            AdaptiveAlgorithm::Gradient2 => LimitAlgorithm::Gradient2,
            AdaptiveAlgorithm::Vegas => LimitAlgorithm::Vegas,
            AdaptiveAlgorithm::AIMD => LimitAlgorithm::Aimd,
        };
        AdaptiveConfig {
            algorithm,
            min_limit,
            max_limit,
        }
    }
}

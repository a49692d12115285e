//! The circuit breaker: the rejection of all requests to a backend that fails or is slow.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        mode::ModeSetting,
        sections::{
            description::{Description, describe_state},
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{Percent, PolicyDuration, StatusRange, StatusSet, duration_or},
    },
    resilience::{
        Mode,
        breaker::{BreakerConfig, BreakerThresholds, BreakerTimes},
        ratio::Ratio,
    },
};

/// Rejects all requests to a backend that fails or is slow, until a few probe calls succeed. A
/// rejected client receives 503 with the reason `breaker_open`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Whether an open breaker rejects requests. Shadow only counts the requests that would be
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// What one breaker covers. Default Backend.
    pub scope: Option<BreakerScope>,
    /// Consecutive failures that trip the breaker. 0 disables it. Default 0.
    pub consecutive_failures: Option<u32>,
    /// Window over which the failure rate and the slow-call rate are counted, above 0s. Default
    /// 10s.
    pub sampling_window: Option<PolicyDuration>,
    /// Minimum number of calls in the window before a rate is evaluated, at least 1. Default
    /// 20.
    pub minimum_number_of_calls: Option<u32>,
    /// Share of failed calls, in percent, from which the breaker trips. 0 disables it. Default
    /// 50.
    pub failure_rate_threshold: Option<Percent>,
    /// Time until the response head above which a call is slow. Default 80 % of
    /// `timeouts.backendRequest`, or 1m if that timeout is off.
    pub slow_call_duration_threshold: Option<PolicyDuration>,
    /// Share of slow calls, in percent, from which the breaker trips. 0 disables it. Default
    /// 100.
    pub slow_call_rate_threshold: Option<Percent>,
    /// HTTP statuses that are failures. Default 5xx. A 429 always counts towards the failure
    /// rate, and never towards `consecutiveFailures`.
    pub failure_codes: Option<Vec<StatusRange>>,
    /// Time for which the breaker is open after it trips, with a jitter of 20 %; above 0s.
    /// Default 5s.
    pub wait_duration_in_open_state: Option<PolicyDuration>,
    /// Maximum open time. The open time doubles with each failed half-open round. Default 1m,
    /// or `waitDurationInOpenState` if that is longer.
    pub max_wait_duration_in_open_state: Option<PolicyDuration>,
    /// Number of calls that probe the backend in a half-open round, at least 1. Default 5.
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
    /// Maximum duration of a half-open round, above 0s. After it, the breaker opens again.
    /// Default 30s.
    pub max_wait_duration_in_half_open_state: Option<PolicyDuration>,
    /// Time after closing during which the admitted share of the calls rises. 0s admits all
    /// calls at once. Default 10s.
    pub recovery_ramp: Option<PolicyDuration>,
}

/// What one circuit breaker covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum BreakerScope {
    /// A backend, for all routes that inherit the section from the same location.
    #[default]
    Backend,
    /// A route. If the route has several backends, each of them has its own breaker.
    Route,
    /// One endpoint. While its breaker is open, the endpoint is not selected. Requests are
    /// rejected only if no other endpoint is left.
    Endpoint,
}

/// Writes the name that policies use.
impl fmt::Display for BreakerScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backend => "Backend",
            Self::Route => "Route",
            Self::Endpoint => "Endpoint",
        })
    }
}

/// Configuration of a circuit breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSpec {
    /// Whether the breaker is enforced, only logged, or off.
    pub mode: Mode,
    /// Calls that one breaker observes: those of a backend, a route or an endpoint.
    pub scope: BreakerScope,
    /// Thresholds, window and open duration.
    pub config: BreakerConfig,
    /// Duration above which a call counts as slow. It belongs to the route, because several
    /// routes may share the breaker.
    pub slow_call_duration_threshold: Duration,
    /// HTTP statuses that count as failures.
    pub failure_codes: StatusSet,
    /// Name of the state. With the scope `Endpoint`, it is the prefix of the names. With the
    /// scope `Route`, it is that of the route.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl BreakerSpec {
    /// Names a breaker of scope `Route` after its route.
    ///
    /// The breaker of a single destination covers the whole route. Each of several destinations
    /// and each auxiliary backend has its own breaker, which also has the name of the `backend`.
    pub(in crate::policy) fn set_route_scope_name(&mut self, route: &str, backend: Option<&str>) {
        if self.scope == BreakerScope::Route {
            self.name = match backend {
                None => format!("route:{route}").into(),
                Some(backend) => format!("route:{route}/{backend}").into(),
            };
        }
    }
}

impl Section for CircuitBreaker {
    const KEY: &'static str = "circuitBreaker";
    type Spec = Option<BreakerSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<BreakerSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found.filter(|found| found.section.mode != ModeSetting::Off)?;
        let slow_call_duration = section.slow_call_duration_threshold.map_or_else(
            || {
                context
                    .attempt_timeout
                    .map_or(Duration::from_mins(1), |timeout| timeout.mul_f64(0.8))
            },
            |threshold| threshold.0,
        );
        let minimum_calls = context.report.require_at_least_one(
            &at,
            "minimumNumberOfCalls",
            section.minimum_number_of_calls,
            20,
        );
        let half_open_max_calls = context.report.require_at_least_one(
            &at,
            "permittedNumberOfCallsInHalfOpenState",
            section.permitted_number_of_calls_in_half_open_state,
            5,
        );
        let config = BreakerConfig::try_new(
            section.thresholds(minimum_calls, slow_call_duration),
            section.times(),
            half_open_max_calls,
        );
        let config = match config {
            Ok(config) => config,
            Err(invalid) => {
                context
                    .report
                    .error(&at, invalid.to_string())
                    .hint("`circuitBreaker: {}` is a breaker with all its defaults");
                return None;
            }
        };
        let all_5xx = [StatusRange::from_bounds(500, 599)];
        Some(BreakerSpec {
            mode: section.mode.mode(),
            scope: section.scope.unwrap_or_default(),
            config,
            slow_call_duration_threshold: slow_call_duration,
            failure_codes: section
                .failure_codes
                .as_deref()
                .unwrap_or(&all_5xx)
                .iter()
                .collect(),
            name: origin.state_name(context.backend),
            origin,
        })
    }

    fn describe(spec: &Option<BreakerSpec>) -> Vec<Description> {
        let describe = |breaker: &BreakerSpec| {
            let config = &breaker.config;
            let thresholds = config.thresholds();
            let failures = thresholds.consecutive_failures.map_or(0, NonZeroU32::get);
            let percent = |rate: Option<Ratio>| rate.map_or(0.0, Ratio::percent);
            Description::default()
                .with("mode", breaker.mode.name())
                .with("scope", breaker.scope)
                .with("consecutiveFailures", failures)
                .with("failureRateThreshold", percent(thresholds.failure_rate))
                .with("slowCallRateThreshold", percent(thresholds.slow_call_rate))
                .with(
                    "slowCallDurationThreshold",
                    PolicyDuration(breaker.slow_call_duration_threshold),
                )
                .with("minimumNumberOfCalls", thresholds.minimum_calls)
                .with("samplingWindow", PolicyDuration(config.window()))
                .with("failureCodes", format_args!("[{}]", breaker.failure_codes))
                .with(
                    "waitDurationInOpenState",
                    PolicyDuration(config.open_duration()),
                )
                .with(
                    "maxWaitDurationInOpenState",
                    PolicyDuration(config.max_open_duration()),
                )
                .with(
                    "permittedNumberOfCallsInHalfOpenState",
                    config.half_open_max_calls(),
                )
                .with(
                    "maxWaitDurationInHalfOpenState",
                    PolicyDuration(config.max_half_open_duration()),
                )
                .with("recoveryRamp", PolicyDuration(config.recovery_ramp()))
                .with("state", &breaker.name)
                .with_origin(&breaker.origin)
        };
        spec.iter().map(describe).collect()
    }

    fn describe_state_change(old: &Option<BreakerSpec>, new: &Option<BreakerSpec>) -> String {
        let (Some(old), Some(new)) = (old, new) else {
            return String::new();
        };
        if old.scope != new.scope {
            return format!("the state `{}` applies", new.name);
        }
        let is_retained = old.config.window() == new.config.window();
        describe_state(
            &old.name,
            &new.name,
            is_retained,
            [
                "its state and counts are retained",
                "its state is retained, its counts are reset",
            ],
        )
    }
}

impl CircuitBreaker {
    fn thresholds(
        &self,
        minimum_calls: NonZeroU32,
        slow_call_duration: Duration,
    ) -> BreakerThresholds {
        let rate = |percent: Option<Percent>, default: f64| {
            Some(percent.unwrap_or(Percent(default)).ratio()).filter(|rate| *rate > Ratio::ZERO)
        };
        BreakerThresholds {
            consecutive_failures: self.consecutive_failures.and_then(NonZeroU32::new),
            failure_rate: rate(self.failure_rate_threshold, 50.0),
            slow_call_rate: rate(self.slow_call_rate_threshold, 100.0)
                .filter(|_| slow_call_duration > Duration::ZERO),
            minimum_calls,
        }
    }

    fn times(&self) -> BreakerTimes {
        let open = duration_or(self.wait_duration_in_open_state, Duration::from_secs(5));
        BreakerTimes {
            window: duration_or(self.sampling_window, Duration::from_secs(10)),
            open_duration: open,
            max_open_duration: duration_or(
                self.max_wait_duration_in_open_state,
                Duration::from_mins(1).max(open),
            ),
            max_half_open_duration: duration_or(
                self.max_wait_duration_in_half_open_state,
                Duration::from_secs(30),
            ),
            recovery_ramp: duration_or(self.recovery_ramp, Duration::from_secs(10)),
        }
    }
}

//! Compiles the protective sections: inheritance and defaults.
//!
//! The nearest source that contains a section provides all of it. The order is: route, policy
//! of the route, policy of the backend, defaults. The fields of two sources are never merged,
//! so that one location shows the whole effective section.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    policy::{
        compile::compiler::{Compiler, FieldLocation, SectionScope},
        document::{
            AdaptiveAlgorithm, CircuitBreaker, ConnectionLimits, ModeSetting, Retry,
            RetryConstraint, RetryTrigger, Sections, Timeouts,
        },
        snapshot::{
            BreakerSpec, ConnectionLimitsSpec, PolicySpec, RetryBudgetSpec, RetrySpec,
            SectionOrigin, TimeoutSpec,
        },
        units::{Percent, PolicyDuration, StatusRange, StatusSet},
    },
    resilience::{
        Mode,
        adaptive::{AdaptiveConfig, LimitAlgorithm},
        backoff::Backoff,
        breaker::{BreakerConfig, BreakerThresholds, BreakerTimes},
        concurrency::ConcurrencyConfig,
        ratio::Ratio,
        retry::{RetryConfig, RetryTriggers},
        retry_budget::RetryBudgetConfig,
    },
};

/// Section that was found, with its origin and location.
pub(super) struct ResolvedSection<'s, 'a, T> {
    pub(super) origin: SectionOrigin,
    pub(super) at: FieldLocation<'a>,
    pub(super) section: &'s T,
}

/// Returns the section of the first scope that contains it; scopes are ordered nearest first.
pub(super) fn find_nearest_section<'s, 'a, T>(
    scopes: &[&SectionScope<'s, 'a>],
    key: &str,
    select_section: impl Fn(&'s Sections) -> Option<&'s T>,
) -> Option<ResolvedSection<'s, 'a, T>> {
    scopes.iter().find_map(|scope| {
        select_section(scope.sections).map(|section| ResolvedSection {
            origin: scope.origin.clone(),
            at: scope.at.key(key),
            section,
        })
    })
}

pub(super) fn compile_mode(name: ModeSetting) -> Mode {
    match name {
        ModeSetting::Enforce => Mode::Enforce,
        ModeSetting::Shadow => Mode::Shadow,
        ModeSetting::Off => Mode::Off,
    }
}

impl<'a> Compiler<'a> {
    /// Compiles sections that no route may use, so that their errors are reported too.
    pub(super) fn check_unused_sections<'s>(
        &mut self,
        scopes: impl Iterator<Item = &'s SectionScope<'s, 'a>>,
    ) where
        'a: 's,
    {
        self.suppresses_warnings = true;
        for scope in scopes {
            self.compile_policy("unused", &[scope]);
            self.compile_rate_limits(&[scope]);
        }
        self.suppresses_warnings = false;
    }

    /// Compiles the effective policy for requests to a backend.
    pub(super) fn compile_policy(
        &mut self,
        backend: &str,
        scopes: &[&SectionScope<'_, 'a>],
    ) -> PolicySpec {
        let timeouts =
            self.compile_timeouts(find_nearest_section(scopes, "timeouts", |sections| {
                sections.timeouts.as_ref()
            }));
        let breaker = find_nearest_section(scopes, "circuitBreaker", |sections| {
            sections.circuit_breaker.as_ref()
        });
        let limits = find_nearest_section(scopes, "connectionLimits", |sections| {
            sections.connection_limits.as_ref()
        });
        PolicySpec {
            retry: self.compile_retry(
                find_nearest_section(scopes, "retry", |sections| sections.retry.as_ref()),
                &timeouts,
            ),
            retry_budget: self.compile_retry_budget(
                find_nearest_section(scopes, "retryConstraint", |sections| {
                    sections.retry_constraint.as_ref()
                })
                .as_ref(),
                backend,
            ),
            breaker: breaker
                .and_then(|found| self.compile_circuit_breaker(&found, backend, &timeouts)),
            admission_control: find_nearest_section(scopes, "admissionControl", |sections| {
                sections.admission_control.as_ref()
            })
            .and_then(|found| self.compile_admission_control(&found, backend)),
            connection_limits: limits
                .and_then(|found| self.compile_connection_limits(&found, backend)),
            hedging: find_nearest_section(scopes, "hedging", |sections| sections.hedging.as_ref())
                .and_then(|found| self.compile_hedging(&found, backend)),
            fallback: find_nearest_section(scopes, "fallback", |sections| {
                sections.fallback.as_ref()
            })
            .and_then(|found| self.compile_fallback(&found)),
            stale_if_error: find_nearest_section(scopes, "staleIfError", |sections| {
                sections.stale_if_error.as_ref()
            })
            .and_then(|found| self.compile_stale_if_error(&found, backend)),
            timeouts,
        }
    }

    fn compile_timeouts(
        &mut self,
        found: Option<ResolvedSection<'_, 'a, Timeouts>>,
    ) -> TimeoutSpec {
        let none = Timeouts::default();
        let section = found.as_ref().map_or(&none, |found| found.section);
        let duration_or = |span: Option<PolicyDuration>, default: u64| {
            let duration = span.map_or(Duration::from_secs(default), |span| span.0);
            (!duration.is_zero()).then_some(duration)
        };
        let request = duration_or(section.request, 15);
        let mut backend_request = duration_or(section.backend_request, 5);
        if let (Some(request_timeout), Some(per_try_timeout)) = (request, backend_request)
            && per_try_timeout > request_timeout
        {
            if let Some(found) = found.as_ref().filter(|_| section.backend_request.is_some()) {
                let hint = format!(
                    "write a `backendRequest` of at most {}",
                    PolicyDuration(request_timeout)
                );
                self.error(
                    &found.at.key("backendRequest"),
                    "one attempt may not take longer than the whole request",
                )
                .hint(hint);
            }
            backend_request = request;
        }
        let origin = found.map(|found| found.origin).unwrap_or_default();
        TimeoutSpec {
            request,
            backend_request,
            connect: duration_or(section.connect, 1),
            stream_idle: duration_or(section.stream_idle, 300),
            origin,
        }
    }

    /// Compiles retries. Without a section, only attempts that never reached the app are repeated.
    ///
    /// Such retries are harmless, and they hide the race between a request and a closed
    /// keep-alive connection.
    fn compile_retry(
        &mut self,
        found: Option<ResolvedSection<'_, 'a, Retry>>,
        timeouts: &TimeoutSpec,
    ) -> RetrySpec {
        let default_triggers = [
            RetryTrigger::ConnectFailure,
            RetryTrigger::RefusedStream,
            RetryTrigger::ResetBeforeRequest,
        ];
        let (section, attempts, codes) = match &found {
            Some(found) => (
                found.section.clone(),
                found.section.attempts.unwrap_or(1),
                vec![StatusRange::from_bounds(502, 504)],
            ),
            None => (Retry::default(), 0, Vec::new()),
        };
        let grpc_codes = section.grpc_codes.as_deref().unwrap_or_default();
        let triggers = section.retry_on.as_deref().unwrap_or(&default_triggers);
        let base = section
            .backoff
            .map_or(Duration::from_millis(25), |span| span.0);
        let max = section
            .max_backoff
            .map_or(base.saturating_mul(10), |span| span.0);
        let backoff = Backoff::try_new(base, max).unwrap_or_else(|invalid| {
            if let Some(found) = &found {
                self.error(&found.at.key("maxBackoff"), invalid.to_string())
                    .hint("write a `maxBackoff` of at least `backoff`");
            }
            Backoff::try_new(base, base).expect("equal bounds are in order")
        });
        if let (Some(found), Some(request_timeout), Some(per_try_timeout)) =
            (&found, timeouts.request, timeouts.backend_request)
            && per_try_timeout.saturating_mul(attempts.saturating_add(1)) > request_timeout
            && section.attempts.is_some()
            && section.mode != ModeSetting::Off
        {
            let message = format!(
                "{} tries of {} do not fit into the request's {}",
                attempts.saturating_add(1),
                PolicyDuration(per_try_timeout),
                PolicyDuration(request_timeout)
            );
            self.warning(&found.at.key("attempts"), message)
                .hint("lower `attempts` or `timeouts.backendRequest`, or raise `timeouts.request`");
        }
        RetrySpec {
            mode: compile_mode(section.mode),
            config: RetryConfig {
                attempts,
                triggers: RetryTriggers {
                    connect_failure: triggers.contains(&RetryTrigger::ConnectFailure),
                    refused_stream: triggers.contains(&RetryTrigger::RefusedStream),
                    reset_before_request: triggers.contains(&RetryTrigger::ResetBeforeRequest),
                    reset: triggers.contains(&RetryTrigger::Reset),
                    timeout: triggers.contains(&RetryTrigger::Timeout),
                },
                backoff,
                retry_non_idempotent: section.retry_non_idempotent.unwrap_or(false),
                respect_retry_after: section.respect_retry_after.unwrap_or(true),
            },
            codes: section.codes.as_ref().unwrap_or(&codes).iter().collect(),
            grpc_codes: grpc_codes
                .iter()
                .fold(0, |set, code| set | 1 << code.number()),
            max_buffered_body_bytes: section.max_buffered_body.map_or(64 << 10, |size| {
                usize::try_from(size.0).unwrap_or(usize::MAX)
            }),
            origin: found.map(|found| found.origin).unwrap_or_default(),
        }
    }

    fn compile_retry_budget(
        &mut self,
        found: Option<&ResolvedSection<'_, 'a, RetryConstraint>>,
        backend: &str,
    ) -> RetryBudgetSpec {
        let section = found.map(|found| found.section.clone()).unwrap_or_default();
        let origin = found.map(|found| found.origin.clone()).unwrap_or_default();
        let (budget, rate) = (
            section.budget.unwrap_or_default(),
            section.min_retry_rate.unwrap_or_default(),
        );
        let defaults = RetryBudgetConfig::default();
        let mut interval = |keys: [&str; 2], span: Option<PolicyDuration>, default: Duration| {
            let interval = span.map_or(default, |span| span.0);
            if let Some(found) = found.filter(|_| interval.is_zero()) {
                self.error(
                    &found.at.key(keys[0]).key(keys[1]),
                    "an interval has a length",
                )
                .hint(format!("{} is the default", PolicyDuration(default)));
            }
            interval
        };
        let config = RetryBudgetConfig {
            share: budget.percent.map_or(defaults.share, Percent::ratio),
            interval: interval(["budget", "interval"], budget.interval, defaults.interval),
            floor: rate.count.unwrap_or(defaults.floor),
            floor_interval: interval(
                ["minRetryRate", "interval"],
                rate.interval,
                defaults.floor_interval,
            ),
        };
        RetryBudgetSpec {
            config,
            name: origin.state_name(backend),
            origin,
        }
    }

    fn compile_circuit_breaker(
        &mut self,
        found: &ResolvedSection<'_, 'a, CircuitBreaker>,
        backend: &str,
        timeouts: &TimeoutSpec,
    ) -> Option<BreakerSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        if section.mode == ModeSetting::Off {
            return None;
        }
        let rate = |percent: Option<Percent>, default: f64| {
            Some(percent.unwrap_or(Percent(default)).ratio()).filter(|rate| *rate > Ratio::ZERO)
        };
        let slow_call_threshold = section.slow_call_duration_threshold.map(|span| span.0);
        let slow_call_duration = slow_call_threshold.unwrap_or_else(|| {
            timeouts
                .backend_request
                .map_or(Duration::from_mins(1), |per_try_timeout| {
                    per_try_timeout.mul_f64(0.8)
                })
        });
        let open = duration_or(section.wait_duration_in_open_state, Duration::from_secs(5));
        let thresholds = BreakerThresholds {
            consecutive_failures: section.consecutive_failures.and_then(NonZeroU32::new),
            failure_rate: rate(section.failure_rate_threshold, 50.0),
            slow_call_rate: rate(section.slow_call_rate_threshold, 100.0)
                .filter(|_| slow_call_duration > Duration::ZERO),
            minimum_calls: self.require_at_least_one(
                at,
                "minimumNumberOfCalls",
                section.minimum_number_of_calls,
                20,
            ),
        };
        let times = BreakerTimes {
            window: duration_or(section.sampling_window, Duration::from_secs(10)),
            open_duration: open,
            max_open_duration: section
                .max_wait_duration_in_open_state
                .map_or(Duration::from_mins(1).max(open), |span| span.0),
            max_half_open_duration: duration_or(
                section.max_wait_duration_in_half_open_state,
                Duration::from_secs(30),
            ),
            recovery_ramp: duration_or(section.recovery_ramp, Duration::from_secs(10)),
        };
        let probes = self.require_at_least_one(
            at,
            "permittedNumberOfCallsInHalfOpenState",
            section.permitted_number_of_calls_in_half_open_state,
            5,
        );
        let config = match BreakerConfig::try_new(thresholds, times, probes) {
            Ok(config) => config,
            Err(invalid) => {
                self.error(at, invalid.to_string())
                    .hint("`circuitBreaker: {}` is a breaker with all its defaults");
                return None;
            }
        };
        let all_5xx = [StatusRange::from_bounds(500, 599)];
        let failure_codes: StatusSet = section
            .failure_codes
            .as_deref()
            .unwrap_or(&all_5xx)
            .iter()
            .collect();
        Some(BreakerSpec {
            mode: compile_mode(section.mode),
            scope: section.scope.unwrap_or_default(),
            config,
            slow_call_duration_threshold: slow_call_duration,
            failure_codes,
            name: origin.state_name(backend),
            origin: origin.clone(),
        })
    }

    fn compile_connection_limits(
        &mut self,
        found: &ResolvedSection<'_, 'a, ConnectionLimits>,
        backend: &str,
    ) -> Option<ConnectionLimitsSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        if section.mode == ModeSetting::Off {
            return None;
        }
        let max_in_flight = self.require_at_least_one(
            at,
            "maxParallelRequests",
            section.max_parallel_requests,
            1024,
        );
        let max_connections = self
            .require_at_least_one(at, "maxConnections", section.max_connections, 1024)
            .get();
        let adaptive = section
            .adaptive
            .as_ref()
            .filter(|adaptive| adaptive.mode != ModeSetting::Off)
            .map(|adaptive| {
                let at = at.key("adaptive");
                let min_limit = self
                    .require_at_least_one(
                        &at,
                        "minLimit",
                        adaptive.min_limit,
                        4.min(max_in_flight.get()),
                    )
                    .get();
                let max_limit = adaptive.max_limit.unwrap_or(max_in_flight.get());
                if max_limit > max_in_flight.get() || max_limit < min_limit {
                    let hint = format!("write a number from {min_limit} to {max_in_flight}");
                    self.error(
                        &at.key("maxLimit"),
                        "`maxLimit` lies between `minLimit` and `maxParallelRequests`",
                    )
                    .hint(hint);
                }
                let algorithm = match adaptive.algorithm {
                    AdaptiveAlgorithm::Gradient2 => LimitAlgorithm::Gradient2,
                    AdaptiveAlgorithm::Vegas => LimitAlgorithm::Vegas,
                    AdaptiveAlgorithm::AIMD => LimitAlgorithm::Aimd,
                };
                (
                    AdaptiveConfig {
                        algorithm,
                        min_limit,
                        max_limit,
                    },
                    compile_mode(adaptive.mode),
                )
            });
        // A queue in front of a limit that keeps latency low would add latency again.
        let default_max_pending = if adaptive.is_some_and(|(_, mode)| mode == Mode::Enforce) {
            0
        } else {
            256
        };
        Some(ConnectionLimitsSpec {
            mode: compile_mode(section.mode),
            adaptive,
            concurrency: ConcurrencyConfig {
                max_in_flight,
                max_pending: section.max_pending_requests.unwrap_or(default_max_pending),
            },
            pending_timeout: section
                .pending_timeout
                .map_or(Duration::from_secs(1), |span| span.0),
            max_connections,
            max_connections_per_endpoint: self
                .require_at_least_one(
                    at,
                    "maxConnectionsPerEndpoint",
                    section.max_connections_per_endpoint,
                    max_connections,
                )
                .get(),
            max_parallel_retries: section
                .max_parallel_retries
                .unwrap_or_else(|| (max_in_flight.get() / 5).max(3)),
            name: origin.state_name(backend),
            origin: origin.clone(),
        })
    }

    pub(super) fn require_at_least_one(
        &mut self,
        at: &FieldLocation<'a>,
        key: &str,
        value: Option<u32>,
        default: u32,
    ) -> NonZeroU32 {
        NonZeroU32::new(value.unwrap_or(default)).unwrap_or_else(|| {
            self.error(&at.key(key), format!("`{key}` is at least 1"))
                .hint(format!("{default} is the default"));
            NonZeroU32::MIN
        })
    }
}

/// Returns the duration of a field, or its default.
pub(super) fn duration_or(span: Option<PolicyDuration>, default: Duration) -> Duration {
    span.map_or(default, |span| span.0)
}

/// Returns the same sections as a policy of the backend instead of the route.
pub(super) fn as_backend_policy<'s, 'a>(
    name: &str,
    scope: &SectionScope<'s, 'a>,
) -> SectionScope<'s, 'a> {
    SectionScope {
        origin: SectionOrigin::BackendPolicy(Arc::from(name)),
        at: scope.at.clone(),
        sections: scope.sections,
    }
}

//! The protective sections: inheriting them, and filling in their defaults.
//!
//! The nearest place that has a section gives all of it: route, the route's policy, the backend's policy, defaults. Within a
//! section nothing is mixed, so that one look at one place tells what holds.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::{At, Compiler, Scope};
use crate::{
    policy::{
        document::{
            AdaptiveAlgorithm, CircuitBreaker, ConnectionLimits, ModeName, Retry, RetryConstraint,
            RetryTrigger, Sections, Timeouts,
        },
        snapshot::{
            BreakerSpec, BudgetSpec, LimitSpec, Origin, PolicySpec, RetrySpec, TimeoutSpec,
        },
        units::{Percent, Span, StatusRange, StatusSet},
    },
    resilience::{
        Mode,
        adaptive::{AdaptiveConfig, Algorithm},
        backoff::Backoff,
        breaker::{BreakerConfig, BreakerThresholds, BreakerTimes},
        concurrency::ConcurrencyConfig,
        ratio::Ratio,
        retry::{RetryConfig, RetryTriggers},
        retry_budget::RetryBudgetConfig,
    },
};

/// A section and where it was found.
pub(super) struct Found<'s, 'a, T> {
    pub(super) origin: Origin,
    pub(super) at: At<'a>,
    pub(super) section: &'s T,
}

/// Looks through the scopes, nearest first.
pub(super) fn nearest<'s, 'a, T>(
    scopes: &[&Scope<'s, 'a>],
    key: &str,
    of: impl Fn(&'s Sections) -> Option<&'s T>,
) -> Option<Found<'s, 'a, T>> {
    scopes.iter().find_map(|scope| {
        of(scope.sections).map(|section| Found {
            origin: scope.origin.clone(),
            at: scope.at.key(key),
            section,
        })
    })
}

pub(super) fn mode(name: ModeName) -> Mode {
    match name {
        ModeName::Enforce => Mode::Enforce,
        ModeName::Shadow => Mode::Shadow,
        ModeName::Off => Mode::Off,
    }
}

impl<'a> Compiler<'a> {
    /// Looks at sections that nobody may be using, so that their faults are found too.
    pub(super) fn check_unused<'s>(&mut self, scopes: impl Iterator<Item = &'s Scope<'s, 'a>>)
    where
        'a: 's,
    {
        self.is_quiet = true;
        for scope in scopes {
            self.policy("unused", &[scope]);
            self.rate_limits(&[scope]);
        }
        self.is_quiet = false;
    }

    /// The effective policy towards a backend.
    pub(super) fn policy(&mut self, backend: &str, scopes: &[&Scope<'_, 'a>]) -> PolicySpec {
        let timeouts = self.timeouts(nearest(scopes, "timeouts", |sections| {
            sections.timeouts.as_ref()
        }));
        let breaker = nearest(scopes, "circuitBreaker", |sections| {
            sections.circuit_breaker.as_ref()
        });
        let limits = nearest(scopes, "connectionLimits", |sections| {
            sections.connection_limits.as_ref()
        });
        PolicySpec {
            retry: self.retry(
                nearest(scopes, "retry", |sections| sections.retry.as_ref()),
                &timeouts,
            ),
            budget: self.budget(
                nearest(scopes, "retryConstraint", |sections| {
                    sections.retry_constraint.as_ref()
                })
                .as_ref(),
                backend,
            ),
            breaker: breaker.and_then(|found| self.breaker(&found, backend, &timeouts)),
            admission: nearest(scopes, "admissionControl", |sections| {
                sections.admission_control.as_ref()
            })
            .and_then(|found| self.admission(&found, backend)),
            limits: limits.and_then(|found| self.limits(&found, backend)),
            hedging: nearest(scopes, "hedging", |sections| sections.hedging.as_ref())
                .and_then(|found| self.hedging(&found, backend)),
            fallback: nearest(scopes, "fallback", |sections| sections.fallback.as_ref())
                .and_then(|found| self.fallback(&found)),
            stale: nearest(scopes, "staleIfError", |sections| {
                sections.stale_if_error.as_ref()
            })
            .and_then(|found| self.stale(&found, backend)),
            timeouts,
        }
    }

    fn timeouts(&mut self, found: Option<Found<'_, 'a, Timeouts>>) -> TimeoutSpec {
        let none = Timeouts::default();
        let written = found.as_ref().map_or(&none, |found| found.section);
        let or = |span: Option<Span>, default: u64| {
            let duration = span.map_or(Duration::from_secs(default), |span| span.0);
            (!duration.is_zero()).then_some(duration)
        };
        let request = or(written.request, 15);
        let mut backend_request = or(written.backend_request, 5);
        if let (Some(whole), Some(one)) = (request, backend_request)
            && one > whole
        {
            if let Some(found) = found.as_ref().filter(|_| written.backend_request.is_some()) {
                let hint = format!("write a `backendRequest` of at most {}", Span(whole));
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
            connect: or(written.connect, 1),
            stream_idle: or(written.stream_idle, 300),
            origin,
        }
    }

    /// Without a section only what never reached the app is tried again, which is harmless and hides the keep-alive race.
    fn retry(&mut self, found: Option<Found<'_, 'a, Retry>>, timeouts: &TimeoutSpec) -> RetrySpec {
        let harmless = [
            RetryTrigger::ConnectFailure,
            RetryTrigger::RefusedStream,
            RetryTrigger::ResetBeforeRequest,
        ];
        let (written, attempts, codes) = match &found {
            Some(found) => (
                found.section.clone(),
                found.section.attempts.unwrap_or(1),
                vec![StatusRange::of(502, 504)],
            ),
            None => (Retry::default(), 0, Vec::new()),
        };
        let grpc_codes = written.grpc_codes.as_deref().unwrap_or_default();
        let triggers = written.retry_on.as_deref().unwrap_or(&harmless);
        let base = written
            .backoff
            .map_or(Duration::from_millis(25), |span| span.0);
        let max = written
            .max_backoff
            .map_or(base.saturating_mul(10), |span| span.0);
        let backoff = Backoff::try_new(base, max).unwrap_or_else(|invalid| {
            if let Some(found) = &found {
                self.error(&found.at.key("maxBackoff"), invalid.to_string())
                    .hint("write a `maxBackoff` of at least `backoff`");
            }
            Backoff::try_new(base, base).expect("equal bounds are in order")
        });
        if let (Some(found), Some(whole), Some(one)) =
            (&found, timeouts.request, timeouts.backend_request)
            && one.saturating_mul(attempts.saturating_add(1)) > whole
            && written.attempts.is_some()
            && written.mode != ModeName::Off
        {
            let message = format!(
                "{} tries of {} do not fit into the request's {}",
                attempts.saturating_add(1),
                Span(one),
                Span(whole)
            );
            self.warning(&found.at.key("attempts"), message)
                .hint("lower `attempts` or `timeouts.backendRequest`, or raise `timeouts.request`");
        }
        RetrySpec {
            mode: mode(written.mode),
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
                retry_non_idempotent: written.retry_non_idempotent.unwrap_or(false),
                respect_retry_after: written.respect_retry_after.unwrap_or(true),
            },
            codes: written.codes.as_ref().unwrap_or(&codes).iter().collect(),
            grpc_codes: grpc_codes
                .iter()
                .fold(0, |set, code| set | 1 << code.number()),
            max_buffered_body: written.max_buffered_body.map_or(64 << 10, |size| {
                usize::try_from(size.0).unwrap_or(usize::MAX)
            }),
            origin: found.map(|found| found.origin).unwrap_or_default(),
        }
    }

    fn budget(
        &mut self,
        found: Option<&Found<'_, 'a, RetryConstraint>>,
        backend: &str,
    ) -> BudgetSpec {
        let written = found.map(|found| found.section.clone()).unwrap_or_default();
        let origin = found.map(|found| found.origin.clone()).unwrap_or_default();
        let (budget, rate) = (
            written.budget.unwrap_or_default(),
            written.min_retry_rate.unwrap_or_default(),
        );
        let usual = RetryBudgetConfig::default();
        let mut interval = |keys: [&str; 2], span: Option<Span>, default: Duration| {
            let interval = span.map_or(default, |span| span.0);
            if let Some(found) = found.filter(|_| interval.is_zero()) {
                self.error(
                    &found.at.key(keys[0]).key(keys[1]),
                    "an interval has a length",
                )
                .hint(format!("{} is the default", Span(default)));
            }
            interval
        };
        let config = RetryBudgetConfig {
            share: budget.percent.map_or(usual.share, Percent::ratio),
            interval: interval(["budget", "interval"], budget.interval, usual.interval),
            floor: rate.count.unwrap_or(usual.floor),
            floor_interval: interval(
                ["minRetryRate", "interval"],
                rate.interval,
                usual.floor_interval,
            ),
        };
        BudgetSpec {
            config,
            name: origin.state_name(backend),
            origin,
        }
    }

    fn breaker(
        &mut self,
        found: &Found<'_, 'a, CircuitBreaker>,
        backend: &str,
        timeouts: &TimeoutSpec,
    ) -> Option<BreakerSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        if written.mode == ModeName::Off {
            return None;
        }
        let or = |span: Option<Span>, default: Duration| span.map_or(default, |span| span.0);
        let rate = |percent: Option<Percent>, default: f64| {
            Some(percent.unwrap_or(Percent(default)).ratio()).filter(|rate| *rate > Ratio::ZERO)
        };
        let slow = written.slow_call_duration_threshold.map(|span| span.0);
        let slow_call_duration = slow.unwrap_or_else(|| {
            timeouts
                .backend_request
                .map_or(Duration::from_mins(1), |one| one.mul_f64(0.8))
        });
        let open = or(written.wait_duration_in_open_state, Duration::from_secs(5));
        let thresholds = BreakerThresholds {
            consecutive_failures: written.consecutive_failures.and_then(NonZeroU32::new),
            failure_rate: rate(written.failure_rate_threshold, 50.0),
            slow_call_rate: rate(written.slow_call_rate_threshold, 100.0)
                .filter(|_| slow_call_duration > Duration::ZERO),
            minimum_calls: self.at_least_one(
                at,
                "minimumNumberOfCalls",
                written.minimum_number_of_calls,
                20,
            ),
        };
        let times = BreakerTimes {
            window: or(written.sampling_window, Duration::from_secs(10)),
            open,
            max_open: written
                .max_wait_duration_in_open_state
                .map_or(Duration::from_mins(1).max(open), |span| span.0),
            max_half_open: or(
                written.max_wait_duration_in_half_open_state,
                Duration::from_secs(30),
            ),
            recovery_ramp: or(written.recovery_ramp, Duration::from_secs(10)),
        };
        let probes = self.at_least_one(
            at,
            "permittedNumberOfCallsInHalfOpenState",
            written.permitted_number_of_calls_in_half_open_state,
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
        let all_5xx = [StatusRange::of(500, 599)];
        let failure_codes: StatusSet = written
            .failure_codes
            .as_deref()
            .unwrap_or(&all_5xx)
            .iter()
            .collect();
        Some(BreakerSpec {
            mode: mode(written.mode),
            scope: written.scope.unwrap_or_default(),
            config,
            slow_call_duration,
            failure_codes,
            name: origin.state_name(backend),
            origin: origin.clone(),
        })
    }

    fn limits(
        &mut self,
        found: &Found<'_, 'a, ConnectionLimits>,
        backend: &str,
    ) -> Option<LimitSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        if written.mode == ModeName::Off {
            return None;
        }
        let max_in_flight = self.at_least_one(
            at,
            "maxParallelRequests",
            written.max_parallel_requests,
            1024,
        );
        let max_connections = self
            .at_least_one(at, "maxConnections", written.max_connections, 1024)
            .get();
        let adaptive = written
            .adaptive
            .as_ref()
            .filter(|adaptive| adaptive.mode != ModeName::Off)
            .map(|adaptive| {
                let at = at.key("adaptive");
                let min_limit = self
                    .at_least_one(
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
                    AdaptiveAlgorithm::Gradient2 => Algorithm::Gradient2,
                    AdaptiveAlgorithm::Vegas => Algorithm::Vegas,
                    AdaptiveAlgorithm::AIMD => Algorithm::Aimd,
                };
                (
                    AdaptiveConfig {
                        algorithm,
                        min_limit,
                        max_limit,
                    },
                    mode(adaptive.mode),
                )
            });
        // A queue before a limit that keeps latency low would be latency again.
        let usual_pending = if adaptive.is_some_and(|(_, mode)| mode == Mode::Enforce) {
            0
        } else {
            256
        };
        Some(LimitSpec {
            mode: mode(written.mode),
            adaptive,
            concurrency: ConcurrencyConfig {
                max_in_flight,
                max_pending: written.max_pending_requests.unwrap_or(usual_pending),
            },
            pending_timeout: written
                .pending_timeout
                .map_or(Duration::from_secs(1), |span| span.0),
            max_connections,
            max_connections_each: self
                .at_least_one(
                    at,
                    "maxConnectionsPerEndpoint",
                    written.max_connections_per_endpoint,
                    max_connections,
                )
                .get(),
            max_parallel_retries: written
                .max_parallel_retries
                .unwrap_or_else(|| (max_in_flight.get() / 5).max(3)),
            name: origin.state_name(backend),
            origin: origin.clone(),
        })
    }

    pub(super) fn at_least_one(
        &mut self,
        at: &At<'a>,
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

/// Sections of a scope that nobody wrote.
pub(super) fn scope_of<'s, 'a>(
    origin: Origin,
    at: At<'a>,
    sections: &'s Sections,
) -> Scope<'s, 'a> {
    Scope {
        origin,
        at,
        sections,
    }
}

/// The same sections seen from a backend instead of a route.
pub(super) fn as_backend_policy<'s, 'a>(name: &str, scope: &Scope<'s, 'a>) -> Scope<'s, 'a> {
    Scope {
        origin: Origin::BackendPolicy(Arc::from(name)),
        at: scope.at.clone(),
        sections: scope.sections,
    }
}

//! Describes the numbers behind a rejection, as `outrigger explain` shows them.
//!
//! A check can state the numbers itself ([`Rejection::with_evidence`]). Otherwise they are read
//! after the decision, so they can differ slightly from those that led to it. The module does not
//! reject requests.

use std::{fmt::Write as _, time::Duration};

use crate::{
    clock,
    policy::units::PolicyDuration,
    proxy::request::{context::RequestContext, rejection::Rejection},
    telemetry::{decision::Decision, label::Label, reason::Reason},
};

/// Records and counts a rejection that shadow mode does not enforce.
pub(crate) fn record_shadow_rejection(context: &RequestContext<'_>, rejection: &Rejection) {
    record(context, rejection, true);
    let metrics = &context.worker.state.telemetry.metrics;
    context
        .route
        .metrics
        .record_shadow_refusal(metrics, rejection.reason);
}

/// Records a rejection in the decision trace, with the numbers of this moment.
pub(crate) fn record_rejection(context: &RequestContext<'_>, rejection: &Rejection) {
    record(context, rejection, false);
}

fn record(context: &RequestContext<'_>, rejection: &Rejection, is_shadow: bool) {
    let evidence = match &rejection.evidence {
        Some(evidence) => evidence.clone(),
        None => Evidence {
            context,
            reason: rejection.reason,
            rejected_by: &rejection.rejected_by,
            wait: rejection.retry_after.filter(|_| !is_shadow),
        }
        .describe(),
    };
    context.decision_trace.record(Decision::Refused {
        reason: rejection.reason,
        by: rejection.rejected_by.clone(),
        evidence,
        is_shadow,
    });
}

/// Rejection whose numbers are described.
struct Evidence<'e> {
    context: &'e RequestContext<'e>,
    reason: Reason,
    rejected_by: &'e str,
    /// Time after which the client may retry; `None` if it is unknown.
    wait: Option<Duration>,
}

impl Evidence<'_> {
    /// Returns the numbers behind the rejection as text; empty if its reason has none.
    fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let backend = &self.context.destination.backend;
        let timeouts = &self.context.destination.policy.timeouts;
        match self.reason {
            Reason::BreakerOpen => self.write_breaker(out),
            Reason::RateLimited | Reason::RateLimitUnavailable => self.write_rate_limit(out),
            Reason::ConcurrencyLimit | Reason::QueueTimeout => self.write_concurrency_limit(out),
            Reason::ConnectionLimit => {
                write!(out, "{} connections exist", backend.counters.connections())
            }
            Reason::NoHealthyEndpoint => write!(
                out,
                "{} of {} endpoints are available",
                backend.available_count(),
                backend.endpoints.len()
            ),
            Reason::Shed => self.write_overload(out),
            Reason::Memory => {
                let memory = &self.context.worker.state.memory;
                let (used, budget) = (memory.used_bytes() >> 10, memory.budget_bytes() >> 10);
                write!(out, "{used} KiB of {budget} KiB are in use")
            }
            Reason::ConnectTimeout => write_timeout(out, "connect", timeouts.connect),
            Reason::UpstreamTimeout => {
                write_timeout(out, "backendRequest", timeouts.backend_request)
            }
            Reason::RequestTimeout => {
                write_timeout(out, "request", timeouts.request)?;
                out.write_str(", or the deadline of the client has expired")
            }
            Reason::StreamIdleTimeout => write_timeout(out, "streamIdle", timeouts.stream_idle),
            _ => Ok(()),
        }
    }

    /// Writes the state of the breaker that rejects. If only breakers of endpoints reject, it
    /// writes how many do.
    fn write_breaker(&self, out: &mut String) -> std::fmt::Result {
        let destination = self.context.destination;
        let now = clock::now();
        let mut breakers = destination
            .breaker
            .iter()
            .chain(&destination.endpoint_breakers);
        let Some(breaker) = breakers.find(|breaker| **breaker.name() == *self.rejected_by) else {
            let rejecting_count = destination
                .endpoint_breakers
                .iter()
                .filter(|breaker| breaker.retry_after(now).is_some())
                .count();
            return write!(
                out,
                "{rejecting_count} of the breakers of {} endpoints reject",
                destination.endpoint_breakers.len()
            );
        };
        let snapshot = breaker.snapshot(now).0;
        let (counts, since) = (
            snapshot.counts,
            now.saturating_duration_since(snapshot.since),
        );
        write!(
            out,
            "it is {} for {since:.1?}, {} of {} calls failed, {} slow",
            snapshot.state.label(),
            counts.failures,
            counts.total(),
            counts.slow_calls
        )?;
        snapshot.deadline.map_or(Ok(()), |deadline| {
            write!(
                out,
                ", next change in {:.1?}",
                deadline.saturating_duration_since(now)
            )
        })
    }

    /// Writes the rule that rejects, and the time until it has more tokens.
    fn write_rate_limit(&self, out: &mut String) -> std::fmt::Result {
        let rules = &self.context.route.spec.rate_limits.rules;
        if let Some(rule) = rules.iter().find(|rule| *rule.name == *self.rejected_by) {
            write!(out, "the limit is {rule}")?;
        }
        self.wait.map_or(Ok(()), |wait| {
            write!(out, "; the next tokens are available in {wait:.1?}")
        })
    }

    /// Writes the load of the concurrency limit, if the destination has one.
    fn write_concurrency_limit(&self, out: &mut String) -> std::fmt::Result {
        let Some(limit) = &self.context.destination.policy_states.concurrency_limit else {
            return Ok(());
        };
        let snapshot = limit.snapshot();
        write!(
            out,
            "{} of {} await a response, {} are in flight, {} of {} are pending",
            snapshot.awaiting_response,
            snapshot.config.max_in_flight,
            snapshot.in_flight,
            snapshot.pending,
            snapshot.config.max_pending
        )
    }

    /// Writes the overload signals of this instance, and the load of the concurrency limit.
    fn write_overload(&self, out: &mut String) -> std::fmt::Result {
        let protection = &self.context.worker.state.protection;
        for (signal, value, level) in protection.signal_readings() {
            write!(
                out,
                "{} is at {:.0} % ({}), ",
                signal.label(),
                value * 100.0,
                level.label()
            )?;
        }
        self.write_concurrency_limit(out)
    }
}

/// Writes the value of a timeout by its policy key; `None` is unlimited.
fn write_timeout(out: &mut String, key: &str, limit: Option<Duration>) -> std::fmt::Result {
    match limit {
        Some(limit) => write!(out, "timeouts.{key} is {}", PolicyDuration(limit)),
        None => write!(out, "timeouts.{key} is off"),
    }
}

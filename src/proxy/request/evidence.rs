//! Describes the numbers behind a rejection, as `outrigger explain` shows them.
//!
//! The numbers are read after the decision, so they can differ slightly from those that led to
//! it. The module does not reject requests.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use crate::{
    clock,
    policy::units::PolicyDuration,
    proxy::request::{context::RequestContext, rejection::Rejection},
    telemetry::{decision::Decision, label::Label, reason::Reason},
};

/// Records and counts a rejection that shadow mode does not enforce.
pub(crate) fn record_shadow_rejection(
    context: &RequestContext<'_>,
    reason: Reason,
    rejected_by: &Arc<str>,
) {
    let evidence = describe_evidence(context, reason, rejected_by, None);
    context.decision_trace.record(Decision::Refused {
        reason,
        by: rejected_by.clone(),
        evidence,
        is_shadow: true,
    });
    context
        .route
        .metrics
        .record_shadow_refusal(&context.worker.state.telemetry.metrics, reason);
}

/// Records a rejection in the decision trace, with the numbers of this moment.
pub(crate) fn record_rejection(context: &RequestContext<'_>, rejection: &Rejection) {
    let evidence = describe_evidence(
        context,
        rejection.reason,
        &rejection.rejected_by,
        rejection.retry_after,
    );
    context.decision_trace.record(Decision::Refused {
        reason: rejection.reason,
        by: rejection.rejected_by.clone(),
        evidence,
        is_shadow: false,
    });
}

/// Returns the numbers behind a rejection as text; empty if the reason has none.
///
/// `wait` is the time after which the client may retry.
fn describe_evidence(
    context: &RequestContext<'_>,
    reason: Reason,
    rejected_by: &str,
    wait: Option<Duration>,
) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    _ = write_evidence(&mut text, context, reason, rejected_by, wait);
    text
}

fn write_evidence(
    out: &mut String,
    context: &RequestContext<'_>,
    reason: Reason,
    rejected_by: &str,
    wait: Option<Duration>,
) -> std::fmt::Result {
    let destination = context.destination;
    let timeouts = &destination.policy.timeouts;
    let format_timeout = |limit: Option<Duration>| {
        limit.map_or_else(
            || "off".to_owned(),
            |limit| PolicyDuration(limit).to_string(),
        )
    };
    match reason {
        Reason::BreakerOpen => write_breaker_evidence(out, context, rejected_by),
        Reason::RateLimited | Reason::RateLimitUnavailable => {
            if let Some(rule) = context
                .route
                .spec
                .rate_limits
                .rules
                .iter()
                .find(|rule| *rule.name == *rejected_by)
            {
                write!(out, "the limit is {rule}")?;
            }
            wait.map_or(Ok(()), |wait| write!(out, ", there is more in {wait:.1?}"))
        }
        Reason::ConcurrencyLimit | Reason::QueueTimeout => write_limit_evidence(out, context),
        Reason::AdmissionControl => match &destination.admission_control {
            Some(admission) => {
                let (calls, share, _) = admission.snapshot(clock::now());
                write!(
                    out,
                    "{} of {} attempts were answered well, {:.0} % are refused",
                    calls.successes,
                    calls.total,
                    share.percent()
                )
            }
            None => Ok(()),
        },
        Reason::ConnectionLimit => write!(
            out,
            "{} connections are made",
            destination.backend.counters.connections()
        ),
        Reason::NoHealthyEndpoint => write!(
            out,
            "{} of {} endpoints may be picked",
            destination.backend.available_count(),
            destination.backend.endpoints.len()
        ),
        Reason::Shed => {
            for (signal, value, level) in context.worker.state.protection.signal_readings() {
                write!(
                    out,
                    "{} is at {:.0} % ({}), ",
                    signal.label(),
                    value * 100.0,
                    level.label()
                )?;
            }
            write_limit_evidence(out, context)
        }
        Reason::ConnectTimeout => write!(
            out,
            "timeouts.connect is {}",
            format_timeout(timeouts.connect)
        ),
        Reason::UpstreamTimeout => write!(
            out,
            "timeouts.backendRequest is {}",
            format_timeout(timeouts.backend_request)
        ),
        Reason::RequestTimeout => write!(
            out,
            "timeouts.request is {}, or the client's own deadline is over",
            format_timeout(timeouts.request)
        ),
        Reason::StreamIdleTimeout => {
            write!(
                out,
                "timeouts.streamIdle is {}",
                format_timeout(timeouts.stream_idle)
            )
        }
        _ => Ok(()),
    }
}

/// Writes the state of the breaker that rejects. If only breakers of endpoints reject, it
/// writes how many do.
fn write_breaker_evidence(
    out: &mut String,
    context: &RequestContext<'_>,
    rejected_by: &str,
) -> std::fmt::Result {
    let destination = context.destination;
    let now = clock::now();
    let mut breakers = destination
        .breaker
        .iter()
        .chain(&destination.endpoint_breakers);
    let Some(breaker) = breakers.find(|breaker| **breaker.name() == *rejected_by) else {
        let rejecting_count = destination
            .endpoint_breakers
            .iter()
            .filter(|breaker| breaker.retry_after(now).is_some())
            .count();
        return write!(
            out,
            "{rejecting_count} of the breakers of {} endpoints refuse",
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

/// Writes the load of the concurrency limit, if the destination has one.
fn write_limit_evidence(out: &mut String, context: &RequestContext<'_>) -> std::fmt::Result {
    let Some(limit) = &context.destination.concurrency_limit else {
        return Ok(());
    };
    let snapshot = limit.snapshot();
    write!(
        out,
        "{} of {} are worked on, {} are in flight, {} of {} wait",
        snapshot.awaiting_response,
        snapshot.config.max_in_flight,
        snapshot.in_flight,
        snapshot.pending,
        snapshot.config.max_pending
    )
}

//! What is noted about a request while it is decided on, and the numbers behind a refusal.
//!
//! Nothing is noted about a request that simply passes, so that it costs nothing.

use std::{
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{rejection::Rejection, serve::Exchange};
use crate::{
    clock,
    policy::units::Span,
    telemetry::{
        decisions::{MAX_STEPS, Step},
        metrics::{level_name, signal_name, state_name},
        reason::Reason,
    },
};

/// The steps so far.
#[derive(Debug)]
pub(super) struct Notes {
    began: Instant,
    /// Guards a push; nobody else has it at the same time, but the attempts of a hedged request.
    steps: Mutex<Vec<(Duration, Step)>>,
}

impl Notes {
    /// About a request that began then.
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            steps: Mutex::new(Vec::new()),
        }
    }

    /// Notes a step, if there is room.
    pub(super) fn push(&self, step: Step) {
        let mut steps = self.lock();
        if steps.len() < MAX_STEPS {
            steps.push((clock::now().saturating_duration_since(self.began), step));
        }
    }

    /// All of them.
    pub(super) fn into_steps(self) -> Vec<(Duration, Step)> {
        self.steps
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Duration, Step)>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes a refusal with its numbers as they are now.
pub(super) fn refused(exchange: &Exchange<'_>, rejection: &Rejection) {
    let numbers = numbers(
        exchange,
        rejection.reason,
        &rejection.by,
        rejection.retry_after,
    );
    exchange.notes.push(Step::Refused {
        reason: rejection.reason,
        by: rejection.by.clone(),
        numbers,
        is_shadow: false,
    });
}

/// The numbers behind a refusal.
pub(super) fn numbers(
    exchange: &Exchange<'_>,
    reason: Reason,
    by: &str,
    wait: Option<Duration>,
) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    _ = write_numbers(&mut text, exchange, reason, by, wait);
    text
}

fn write_numbers(
    out: &mut String,
    exchange: &Exchange<'_>,
    reason: Reason,
    by: &str,
    wait: Option<Duration>,
) -> std::fmt::Result {
    let destination = exchange.destination;
    let timeouts = &destination.policy.timeouts;
    let span = |limit: Option<Duration>| {
        limit.map_or_else(|| "off".to_owned(), |limit| Span(limit).to_string())
    };
    match reason {
        Reason::BreakerOpen => breaker(out, exchange, by),
        Reason::RateLimited | Reason::RateLimitUnavailable => {
            if let Some(rule) = exchange
                .route
                .spec
                .rate_limits
                .rules
                .iter()
                .find(|rule| *rule.name == *by)
            {
                write!(out, "the limit is {rule}")?;
            }
            wait.map_or(Ok(()), |wait| write!(out, ", there is more in {wait:.1?}"))
        }
        Reason::ConcurrencyLimit | Reason::QueueTimeout => limit(out, exchange),
        Reason::AdmissionControl => match &destination.admission {
            Some(admission) => {
                let (calls, share, _) = admission.snapshot(clock::now());
                write!(
                    out,
                    "{} of {} attempts were answered well, {:.0} % are refused",
                    calls.good,
                    calls.all,
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
            destination.backend.available(),
            destination.backend.endpoints.len()
        ),
        Reason::Shed => {
            for (signal, value, level) in exchange.worker.state.protection.signals() {
                write!(
                    out,
                    "{} is at {:.0} % ({}), ",
                    signal_name(signal),
                    value * 100.0,
                    level_name(level)
                )?;
            }
            limit(out, exchange)
        }
        Reason::ConnectTimeout => write!(out, "timeouts.connect is {}", span(timeouts.connect)),
        Reason::UpstreamTimeout => write!(
            out,
            "timeouts.backendRequest is {}",
            span(timeouts.backend_request)
        ),
        Reason::RequestTimeout => write!(
            out,
            "timeouts.request is {}, or the client's own deadline is over",
            span(timeouts.request)
        ),
        Reason::StreamIdleTimeout => {
            write!(out, "timeouts.streamIdle is {}", span(timeouts.stream_idle))
        }
        _ => Ok(()),
    }
}

/// The breaker that refuses; or of those of a backend's endpoints how many are not closed.
fn breaker(out: &mut String, exchange: &Exchange<'_>, by: &str) -> std::fmt::Result {
    let destination = exchange.destination;
    let now = clock::now();
    let mut all = destination
        .breaker
        .iter()
        .chain(&destination.endpoint_breakers);
    let Some(breaker) = all.find(|breaker| **breaker.name() == *by) else {
        let open = destination
            .endpoint_breakers
            .iter()
            .filter(|breaker| breaker.refuses_for(now).is_some())
            .count();
        return write!(
            out,
            "{open} of the breakers of {} endpoints refuse",
            destination.endpoint_breakers.len()
        );
    };
    let shown = breaker.snapshot(now).0;
    let (counts, since) = (shown.counts, now.saturating_duration_since(shown.since));
    write!(
        out,
        "it is {} for {since:.1?}, {} of {} calls failed, {} slow",
        state_name(shown.state),
        counts.failures,
        counts.total(),
        counts.slow
    )?;
    shown.deadline.map_or(Ok(()), |deadline| {
        write!(
            out,
            ", next change in {:.1?}",
            deadline.saturating_duration_since(now)
        )
    })
}

fn limit(out: &mut String, exchange: &Exchange<'_>) -> std::fmt::Result {
    let Some(limit) = &exchange.destination.limit else {
        return Ok(());
    };
    let shown = limit.snapshot();
    write!(
        out,
        "{} of {} are worked on, {} are in flight, {} of {} wait",
        shown.working,
        shown.config.max_in_flight,
        shown.in_flight,
        shown.pending,
        shown.config.max_pending
    )
}

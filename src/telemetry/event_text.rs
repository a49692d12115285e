//! Renders each event as one sentence, for the log and the event stream.
//!
//! The module does not know at which level an event is logged.

use std::fmt::{self, Display, Formatter};

use crate::{
    resilience::{
        breaker::{Transition, TransitionCause},
        shed::OverloadLevelChange,
    },
    telemetry::{event::Event, label::Label},
};

impl Display for Event {
    #[expect(clippy::too_many_lines, reason = "one arm per event")]
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { version, admin } => {
                write!(f, "outrigger {version} is up, admin on {admin}")
            }
            Self::PolicyApplied {
                generation,
                hash,
                changes,
                warnings,
            } => {
                write!(f, "policy generation {generation} ({hash}) is active")?;
                for change in changes {
                    write!(f, "; {change}")?;
                }
                for warning in warnings {
                    write!(f, "; warning: {warning}")?;
                }
                Ok(())
            }
            Self::PolicyRestored { generation } => write!(
                f,
                "the invalid policies are replaced, and generation {generation} is the newest again"
            ),
            Self::PolicyRefused { faults } => write!(
                f,
                "invalid policies, the last valid set stays active: {}",
                faults.join("; ")
            ),
            Self::ListenerBound { listener, address } => {
                write!(f, "listener {listener} accepts connections on {address}")
            }
            Self::ListenerClosed { listener } => {
                write!(f, "listener {listener} accepts no more connections")
            }
            Self::AdminActed {
                action,
                requested_by,
            } => write!(f, "{action} by {requested_by}"),
            Self::BreakerChanged {
                breaker,
                transition,
            } => write_transition(f, breaker, transition),
            Self::EndpointDraining {
                backend,
                endpoint,
                ttl,
            } => write!(
                f,
                "endpoint {endpoint} of {backend} drains and is not selected for {ttl:?}"
            ),
            Self::EndpointDrainingCleared {
                backend,
                endpoint,
                reason,
            } => write!(
                f,
                "endpoint {endpoint} of {backend} is selectable again: {reason}"
            ),
            Self::HealthChanged {
                backend,
                endpoint,
                health,
                reason,
            } => write!(
                f,
                "endpoint {endpoint} of {backend} is {}: {reason}",
                health.label()
            ),
            Self::EndpointEjected {
                backend,
                endpoint,
                cause,
                ejection_time,
                is_shadow,
            } => write!(
                f,
                "endpoint {endpoint} of {backend} {} ejected for {ejection_time:.1?}: {cause}",
                is_or_would_be(*is_shadow)
            ),
            Self::EndpointReadmitted {
                backend,
                endpoint,
                is_shadow,
            } => write!(
                f,
                "endpoint {endpoint} of {backend} passed its probe and {} readmitted",
                is_or_would_be(*is_shadow)
            ),
            Self::PanicChanged {
                backend,
                is_panicking: true,
            } => write!(
                f,
                "too few endpoints of {backend} are healthy, requests go to all of them"
            ),
            Self::PanicChanged { backend, .. } => {
                write!(f, "enough endpoints of {backend} are healthy again")
            }
            Self::ReadinessChanged { is_ready: true, .. } => f.write_str("ready"),
            Self::ReadinessChanged { unmet, .. } => write!(f, "not ready: {}", unmet.join("; ")),
            Self::DrainStarted { requested_by } => {
                write!(f, "draining, requested by {requested_by}")
            }
            Self::HandedOver { requested_by } => write!(
                f,
                "handed over to {requested_by}: no more connections are accepted, requests in \
                 flight are finished"
            ),
            Self::DrainEnded {
                is_clean: true,
                duration,
                ..
            } => write!(f, "drained in {duration:.1?}, nothing is in flight"),
            Self::DrainEnded {
                in_flight,
                duration,
                ..
            } => write!(
                f,
                "drain timed out after {duration:.1?} with {in_flight} requests in flight"
            ),
            Self::RecoveryActed {
                recovery,
                rung,
                action,
                is_shadow,
                result,
            } => {
                let took = if *is_shadow { "would take" } else { "took" };
                let (Ok(result) | Err(result)) = result;
                write!(
                    f,
                    "recovery {recovery} {took} rung {rung}, {action}: {result}"
                )
            }
            Self::RecoveryCapped { recovery } => {
                write!(f, "recovery {recovery} has used its actions of this hour")
            }
            Self::RecoveryUndone { recovery } => {
                write!(f, "recovery {recovery}: the trigger no longer holds")
            }
            Self::ProtectionChanged { change } => write_protection(f, change),
            Self::MemoryLevelChanged {
                from,
                to,
                used_bytes,
                budget_bytes,
            } => write!(
                f,
                "memory pressure: {} -> {}, {} KiB of {} KiB are in use",
                from.label(),
                to.label(),
                used_bytes >> 10,
                budget_bytes >> 10
            ),
            Self::EndpointsChanged {
                backend,
                count,
                changes,
            } => {
                let changes = changes.join(", ");
                write!(f, "backend {backend} has {count} endpoints: {changes}")
            }
            Self::DiscoveryFailed { backend, reason } => write!(
                f,
                "discovery of {backend} failed, the last valid endpoints stay active: {reason}"
            ),
            Self::DiscoveryRestored { backend } => {
                write!(f, "discovery of {backend} works again")
            }
            Self::GlobalLimitsLost { reason } => {
                write!(
                    f,
                    "the engine of the shared rate limits is unreachable: {reason}"
                )
            }
            Self::GlobalLimitsRestored { engine } => {
                write!(f, "{engine} serves the shared rate limits again")
            }
            Self::CertificateChanged { subject } => {
                write!(f, "the {subject} uses new certificates")
            }
            Self::CertificateRefused { subject, reason } => write!(
                f,
                "the certificates of the {subject} are invalid, the last valid certificates stay \
                 active: {reason}"
            ),
            Self::CertificateExpiring { subject, remaining } if remaining.is_zero() => {
                write!(f, "a certificate of the {subject} has expired")
            }
            Self::CertificateExpiring { subject, remaining } => write!(
                f,
                "a certificate of the {subject} expires in {} hours",
                remaining.as_secs() / 3_600
            ),
        }
    }
}

fn write_transition(f: &mut Formatter<'_>, breaker: &str, transition: &Transition) -> fmt::Result {
    let counts = transition.counts;
    write!(
        f,
        "breaker {breaker}: {} -> {} because {}, {} failed and {} slow of {} calls",
        transition.from.label(),
        transition.to.label(),
        transition_cause(transition.cause),
        counts.failures,
        counts.slow_calls,
        counts.total()
    )
}

fn transition_cause(cause: TransitionCause) -> &'static str {
    match cause {
        TransitionCause::ConsecutiveFailures => "too many calls in a row failed",
        TransitionCause::FailureRate => "the failure rate is too high",
        TransitionCause::SlowCallRate => "the slow call rate is too high",
        TransitionCause::OpenTimeElapsed => "the open time elapsed",
        TransitionCause::ProbesPassed => "the probes passed",
        TransitionCause::ProbesFailed => "the probes failed",
        TransitionCause::ProbesTimedOut => "the half-open round timed out",
        TransitionCause::Manual => "an operator changed it",
    }
}

fn write_protection(f: &mut Formatter<'_>, change: &OverloadLevelChange) -> fmt::Result {
    let (signal, from, to) = (
        change.signal.label(),
        change.from.label(),
        change.to.label(),
    );
    match change.value {
        Some(value) => {
            let percent = value * 100.0;
            write!(
                f,
                "protection: {signal} is at {percent:.0} %, {from} -> {to}"
            )
        }
        None => write!(f, "protection: {signal} has no reading, {from} -> {to}"),
    }
}

fn is_or_would_be(is_shadow: bool) -> &'static str {
    if is_shadow { "would be" } else { "is" }
}

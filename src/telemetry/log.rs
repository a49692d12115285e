//! Decides the level at which each event is logged, and starts the process log.
//!
//! - error: an operator must act.
//! - warn: the service is degraded, and the sidecar recovers by itself.
//! - info: the instance or a mechanism changed its state.
//!
//! The module does not know the text of an event.

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    resilience::{
        breaker::StateKind,
        health::Health,
        shed::{OverloadLevel, OverloadLevelChange},
    },
    telemetry::event::Event,
};

/// Format of the process log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessLogFormat {
    /// One line of readable text per entry.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the process log on standard error.
///
/// `filter` is a level or a list of `tracing` directives. An invalid filter is replaced by `info`.
/// A second call changes nothing.
pub fn init(filter: &str, format: ProcessLogFormat) {
    // pingora logs each failed request itself. The access log contains more about it.
    let filter = EnvFilter::try_new(format!("{filter},pingora=error,pingora_core=error"));
    let registry =
        tracing_subscriber::registry().with(filter.unwrap_or_else(|_| EnvFilter::new("info")));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    // An error means that a log has already been started.
    _ = match format {
        ProcessLogFormat::Text => registry.with(layer.compact()).try_init(),
        ProcessLogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// Logs one event at the level that its kind requires.
pub(super) fn write_event(event: &Event) {
    let kind = event.kind();
    match event {
        Event::PolicyRefused { .. }
        | Event::CertificateRefused { .. }
        | Event::RecoveryCapped { .. }
        | Event::RecoveryActed { result: Err(_), .. } => {
            tracing::error!(event = kind, "{event}")
        }
        Event::BreakerChanged { transition, .. } if transition.to == StateKind::Open => {
            tracing::warn!(event = kind, "{event}")
        }
        Event::HealthChanged {
            health: Health::Unhealthy,
            ..
        }
        | Event::ReadinessChanged {
            is_ready: false, ..
        }
        | Event::DrainEnded {
            is_clean: false, ..
        }
        | Event::RecoveryActed { .. }
        | Event::EndpointEjected { .. }
        | Event::DiscoveryFailed { .. }
        | Event::GlobalLimitsLost { .. }
        | Event::CertificateExpiring { .. }
        | Event::ProtectionChanged {
            change:
                OverloadLevelChange {
                    to: OverloadLevel::Warning | OverloadLevel::Critical,
                    ..
                },
        }
        | Event::PanicChanged {
            is_panicking: true, ..
        } => tracing::warn!(event = kind, "{event}"),
        Event::Started { .. }
        | Event::PolicyApplied { .. }
        | Event::PolicyRestored { .. }
        | Event::ListenerBound { .. }
        | Event::ListenerClosed { .. }
        | Event::BreakerChanged { .. }
        | Event::EndpointDraining { .. }
        | Event::EndpointDrainingCleared { .. }
        | Event::HealthChanged { .. }
        | Event::ReadinessChanged { .. }
        | Event::DrainStarted { .. }
        | Event::HandedOver { .. }
        | Event::DrainEnded { .. }
        | Event::RecoveryUndone { .. }
        | Event::AdminActed { .. }
        | Event::EndpointReadmitted { .. }
        | Event::EndpointsChanged { .. }
        | Event::DiscoveryRestored { .. }
        | Event::GlobalLimitsRestored { .. }
        | Event::CertificateChanged { .. }
        | Event::ProtectionChanged { .. }
        | Event::PanicChanged { .. } => tracing::info!(event = kind, "{event}"),
    }
}

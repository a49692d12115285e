//! Events as log lines, and the log itself.
//!
//! Levels: error = a human must act, warn = degraded and recovering, info = lifecycle and transitions.

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    resilience::{
        breaker::StateKind,
        health::Health,
        shed::{OverloadLevel, OverloadLevelChange},
    },
    telemetry::event::Event,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessLogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Begins to write log lines to standard error. `filter` is a level, or directives as of `tracing`. A second call changes
/// nothing, so that tests may call it.
pub fn init(filter: &str, format: ProcessLogFormat) {
    // pingora logs each failed request by itself; the access log says more about it.
    let filter = EnvFilter::try_new(format!("{filter},pingora=error,pingora_core=error"));
    let registry =
        tracing_subscriber::registry().with(filter.unwrap_or_else(|_| EnvFilter::new("info")));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    // An error says that a log is there already.
    _ = match format {
        ProcessLogFormat::Text => registry.with(layer.compact()).try_init(),
        ProcessLogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// Writes one event.
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

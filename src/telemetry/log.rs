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
        breaker::StateKind, health::Health, memory_pressure::MemoryLevel, shed::OverloadLevel,
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
        event if is_warning(event) => tracing::warn!(event = kind, "{event}"),
        _ => tracing::info!(event = kind, "{event}"),
    }
}

/// Returns whether an event states that something became worse.
fn is_warning(event: &Event) -> bool {
    match event {
        Event::BreakerChanged { transition, .. } => transition.to == StateKind::Open,
        Event::HealthChanged { health, .. } => *health == Health::Unhealthy,
        Event::ReadinessChanged { is_ready, .. } => !is_ready,
        Event::DrainEnded { is_clean, .. } => !is_clean,
        Event::ProtectionChanged { change } => change.to > OverloadLevel::Normal,
        Event::MemoryLevelChanged { to, .. } => *to >= MemoryLevel::High,
        Event::PanicChanged { is_panicking, .. } => *is_panicking,
        Event::RecoveryActed { .. }
        | Event::EndpointEjected { .. }
        | Event::DiscoveryFailed { .. }
        | Event::GlobalLimitsLost { .. }
        | Event::CertificateExpiring { .. } => true,
        _ => false,
    }
}

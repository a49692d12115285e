//! Defines the closed list of events that the sidecar reports.
//!
//! An event describes a change of the instance, its policies, its backends or its dependencies. A
//! completed request is not an event; the access log states it. The module does not know who
//! receives an event, or at which level it is logged.

use std::{sync::Arc, time::Duration};

use crate::{
    resilience::{
        breaker::Transition, health::Health, memory_pressure::MemoryLevel, outlier::EjectionCause,
        shed::OverloadLevelChange,
    },
    telemetry::tls_subject::TlsSubject,
};

/// Occurrence that is logged, counted and published to subscribers.
#[derive(Debug, Clone)]
pub enum Event {
    /// The process has started, and its admin socket is bound.
    Started {
        /// Version of the sidecar package.
        version: &'static str,
        /// Socket address of the admin server.
        admin: String,
    },
    /// A new policy set is active.
    PolicyApplied {
        /// Generation of the policy set, from 1.
        generation: u64,
        /// Hash of the policy files, as 16 hexadecimal digits.
        hash: String,
        /// Descriptions of the changes since the previous set.
        changes: Vec<String>,
        /// Warnings about the policy set, one line each.
        warnings: Vec<String>,
    },
    /// A rejected policy set was withdrawn, so the active one is the newest again.
    PolicyRestored {
        /// Generation of the active policy set.
        generation: u64,
    },
    /// A policy set was rejected, and the active one stays active.
    PolicyRefused {
        /// All faults of the rejected policy set, one per element.
        faults: Vec<String>,
    },
    /// A listener accepts connections.
    ListenerBound {
        /// Name of the listener.
        listener: Arc<str>,
        /// Bound address, with the actual port.
        address: String,
    },
    /// A listener was removed and accepts no more connections. Requests in flight continue.
    ListenerClosed {
        /// Name of the listener.
        listener: Arc<str>,
    },
    /// A circuit breaker changed its state.
    BreakerChanged {
        /// Name of the circuit breaker.
        breaker: Arc<str>,
        /// States before and after the transition, with its cause and counts.
        transition: Transition,
    },
    /// An endpoint announced that it is draining.
    EndpointDraining {
        /// Name of the backend of the endpoint.
        backend: Arc<str>,
        /// Address of the endpoint.
        endpoint: Arc<str>,
        /// Maximum time for which the endpoint is not selected.
        ttl: Duration,
    },
    /// A draining endpoint can be selected again.
    EndpointDrainingCleared {
        /// Name of the backend of the endpoint.
        backend: Arc<str>,
        /// Address of the endpoint.
        endpoint: Arc<str>,
        /// Description of the cause, such as an expired announcement.
        reason: &'static str,
    },
    /// The active checks changed the health of an endpoint.
    HealthChanged {
        /// Name of the backend of the endpoint.
        backend: Arc<str>,
        /// Address of the endpoint.
        endpoint: Arc<str>,
        /// Health of the endpoint after the change.
        health: Health,
        /// Result of the check that caused the change.
        reason: String,
    },
    /// The readiness of the instance changed.
    ReadinessChanged {
        /// Whether the instance is ready now.
        is_ready: bool,
        /// Conditions that are not met, each as `NAME: REASON`; empty if ready.
        unmet: Vec<String>,
    },
    /// The instance starts to drain.
    DrainStarted {
        /// Signal or caller that requested the drain.
        requested_by: &'static str,
    },
    /// Another process accepts the connections from now on.
    HandedOver {
        /// Signal or successor that caused the handover.
        requested_by: &'static str,
    },
    /// The drain has ended: no inbound request is in flight, or the drain timed out.
    DrainEnded {
        /// Whether no inbound request was in flight at the end of the drain.
        is_clean: bool,
        /// Number of inbound requests that are still in flight.
        in_flight: usize,
        /// Duration since the start of the drain.
        duration: Duration,
    },
    /// A recovery executed an action, or would have without shadow mode.
    RecoveryActed {
        /// Name of the recovery.
        recovery: Arc<str>,
        /// Rung of the recovery ladder, from 1.
        rung: u32,
        /// Token of the action: `fail_readiness` or `webhook`.
        action: &'static str,
        /// Whether shadow mode prevented the action.
        is_shadow: bool,
        /// Description of the trigger or result, or the failure of the action.
        result: Result<String, String>,
    },
    /// A recovery did not act, because it has reached its hourly cap.
    RecoveryCapped {
        /// Name of the recovery.
        recovery: Arc<str>,
    },
    /// A recovery was removed or its trigger no longer holds, so its readiness condition is
    /// cleared.
    RecoveryUndone {
        /// Name of the recovery.
        recovery: Arc<str>,
    },
    /// A caller changed something through the admin API.
    AdminActed {
        /// Description of the change in words.
        action: String,
        /// IP address of the caller.
        requested_by: String,
    },
    /// Discovery found other endpoints of a backend than before.
    EndpointsChanged {
        /// Name of the backend.
        backend: Arc<str>,
        /// Number of endpoints after the change.
        count: usize,
        /// Descriptions of the added, removed and changed endpoints.
        changes: Vec<String>,
    },
    /// Discovery of a backend failed, and the last known endpoints stay active.
    DiscoveryFailed {
        /// Name of the backend.
        backend: Arc<str>,
        /// Description of the fault that discovery met.
        reason: String,
    },
    /// Discovery of a backend succeeds again after a failure.
    DiscoveryRestored {
        /// Name of the backend.
        backend: Arc<str>,
    },
    /// The remote engine of the global rate limits is unavailable.
    GlobalLimitsLost {
        /// Name and location of the engine, with the cause of the failure.
        reason: String,
    },
    /// The remote engine of the global rate limits is available again.
    GlobalLimitsRestored {
        /// Kind and address of the engine.
        engine: String,
    },
    /// New certificates were read from their files and are active for new connections.
    CertificateChanged {
        /// Listener or backend that uses the certificates.
        subject: TlsSubject,
    },
    /// Certificate files cannot be read or used, and the certificates read last stay active.
    CertificateRefused {
        /// Listener or backend that uses the certificates.
        subject: TlsSubject,
        /// Description of the fault in the files.
        reason: String,
    },
    /// A certificate expires soon, or has expired.
    CertificateExpiring {
        /// Listener or backend that uses the certificates.
        subject: TlsSubject,
        /// Remaining validity of the certificate; zero if it has expired.
        remaining: Duration,
    },
    /// Outlier detection ejected an endpoint, or would have without shadow mode.
    EndpointEjected {
        /// Name of the backend of the endpoint.
        backend: Arc<str>,
        /// Address of the endpoint.
        endpoint: Arc<str>,
        /// Cause of the ejection, with its numbers.
        cause: EjectionCause,
        /// Duration of the ejection, before the probation of the endpoint.
        ejection_time: Duration,
        /// Whether shadow mode leaves the endpoint selectable.
        is_shadow: bool,
    },
    /// An ejected endpoint passed its probe and is readmitted.
    EndpointReadmitted {
        /// Name of the backend of the endpoint.
        backend: Arc<str>,
        /// Address of the endpoint.
        endpoint: Arc<str>,
        /// Whether shadow mode had left the endpoint selectable.
        is_shadow: bool,
    },
    /// A resource signal of the instance changed its overload level.
    ProtectionChanged {
        /// Signal with its level before and after the change, and its reading.
        change: OverloadLevelChange,
    },
    /// The level of memory pressure changed. It is reported at most once per second, with the
    /// highest level in between.
    MemoryLevelChanged {
        /// Level of the last report.
        from: MemoryLevel,
        /// Highest level since the last report.
        to: MemoryLevel,
        /// Number of bytes that the data plane holds now.
        used_bytes: u64,
        /// Memory budget of the data plane.
        budget_bytes: u64,
    },
    /// A backend entered or left panic mode, in which availability is ignored.
    PanicChanged {
        /// Name of the backend.
        backend: Arc<str>,
        /// Whether panic mode is active now.
        is_panicking: bool,
    },
}

impl Event {
    /// Returns the kind of the event as a token, for the event stream and the log.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::PolicyApplied { .. } => "policy_applied",
            Self::PolicyRestored { .. } => "policy_restored",
            Self::PolicyRefused { .. } => "policy_refused",
            Self::ListenerBound { .. } => "listener_bound",
            Self::ListenerClosed { .. } => "listener_closed",
            Self::BreakerChanged { .. } => "breaker_changed",
            Self::EndpointDraining { .. } => "endpoint_leaves",
            Self::EndpointDrainingCleared { .. } => "endpoint_returned",
            Self::HealthChanged { .. } => "health_changed",
            Self::ReadinessChanged { .. } => "readiness_changed",
            Self::DrainStarted { .. } => "drain_began",
            Self::HandedOver { .. } => "relieved",
            Self::DrainEnded { .. } => "drain_ended",
            Self::RecoveryActed { .. } => "recovery_acted",
            Self::RecoveryCapped { .. } => "recovery_capped",
            Self::RecoveryUndone { .. } => "recovery_undone",
            Self::AdminActed { .. } => "admin_acted",
            Self::EndpointsChanged { .. } => "endpoints_changed",
            Self::DiscoveryFailed { .. } => "discovery_failed",
            Self::DiscoveryRestored { .. } => "discovery_restored",
            Self::GlobalLimitsLost { .. } => "global_limits_lost",
            Self::GlobalLimitsRestored { .. } => "global_limits_restored",
            Self::CertificateChanged { .. } => "certificate_changed",
            Self::CertificateRefused { .. } => "certificate_refused",
            Self::CertificateExpiring { .. } => "certificate_expiring",
            Self::EndpointEjected { .. } => "endpoint_ejected",
            Self::EndpointReadmitted { .. } => "endpoint_readmitted",
            Self::ProtectionChanged { .. } => "protection_changed",
            Self::MemoryLevelChanged { .. } => "memory_level_changed",
            Self::PanicChanged { .. } => "panic_changed",
        }
    }

    /// Returns the name of the recovery that acted, was capped or was undone; otherwise `None`.
    #[must_use]
    pub fn recovery(&self) -> Option<&str> {
        match self {
            Self::RecoveryActed { recovery, .. }
            | Self::RecoveryCapped { recovery }
            | Self::RecoveryUndone { recovery } => Some(recovery),
            _ => None,
        }
    }
}

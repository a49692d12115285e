//! Everything that is worth telling apart from single requests: a closed list.

use std::{sync::Arc, time::Duration};

use crate::{
    resilience::{
        breaker::Transition, health::Health, outlier::EjectionCause, shed::OverloadLevelChange,
    },
    telemetry::tls_subject::TlsSubject,
};

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The sidecar is up.
    Started {
        /// Its version.
        version: &'static str,
        /// The admin address.
        admin: String,
    },
    /// A new set of policies is in force.
    PolicyApplied {
        /// Counted from 1.
        generation: u64,
        /// The hash of its files.
        hash: String,
        /// What has changed, in words.
        changes: Vec<String>,
        /// What is suspicious.
        warnings: Vec<String>,
    },
    /// A refused set is gone: the newest policies are those in force again.
    PolicyRestored {
        /// The generation in force.
        generation: u64,
    },
    /// A set of policies was refused; what was in force still is.
    PolicyRefused {
        /// All faults, one line each.
        faults: Vec<String>,
    },
    /// A listener takes requests.
    ListenerBound {
        /// Its name.
        listener: Arc<str>,
        /// The address, with the real port.
        address: String,
    },
    /// A listener no longer takes requests; those in flight run on.
    ListenerClosed {
        /// Its name.
        listener: Arc<str>,
    },
    /// A breaker changed its state.
    BreakerChanged {
        /// Its name.
        breaker: Arc<str>,
        /// From where to where and why.
        transition: Transition,
    },
    /// An endpoint said that it is leaving.
    EndpointDraining {
        /// Its backend.
        backend: Arc<str>,
        /// Its address.
        endpoint: Arc<str>,
        /// For how long it is left alone.
        ttl: Duration,
    },
    /// An endpoint that was leaving is asked again.
    EndpointDrainingCleared {
        /// Its backend.
        backend: Arc<str>,
        /// Its address.
        endpoint: Arc<str>,
        /// Why.
        reason: &'static str,
    },
    /// An endpoint's health changed.
    HealthChanged {
        /// Its backend.
        backend: Arc<str>,
        /// Its address.
        endpoint: Arc<str>,
        /// What it is now.
        health: Health,
        /// The result of the check that decided.
        reason: String,
    },
    /// Readiness changed.
    ReadinessChanged {
        /// What it is now.
        is_ready: bool,
        /// The conditions that are not met.
        unmet: Vec<String>,
    },
    /// The instance is leaving.
    DrainStarted {
        /// Who or what asked for it.
        requested_by: &'static str,
    },
    /// Another process takes the connections from now on.
    HandedOver {
        /// Who or what asked for it.
        requested_by: &'static str,
    },
    /// The instance has nothing left to do, or no time.
    DrainEnded {
        /// Whether nothing was left in flight.
        is_clean: bool,
        /// What was left.
        in_flight: usize,
        /// How long it took.
        duration: Duration,
    },
    /// A recovery did something, or would have.
    RecoveryActed {
        /// Its name.
        recovery: Arc<str>,
        /// The rung of its ladder, from 1.
        rung: u32,
        /// What it did.
        action: &'static str,
        /// Whether it only would have.
        is_shadow: bool,
        /// How it went.
        result: Result<String, String>,
    },
    /// A recovery would act, and its hour's actions are used.
    RecoveryCapped {
        /// Its name.
        recovery: Arc<str>,
    },
    /// The trouble of a recovery is over, and what could be undone is.
    RecoveryUndone {
        /// Its name.
        recovery: Arc<str>,
    },
    /// Somebody changed something by the admin API.
    AdminActed {
        /// What.
        action: String,
        /// Who: the address of the caller.
        requested_by: String,
    },
    /// Other endpoints of a backend were found than before.
    EndpointsChanged {
        /// The backend.
        backend: Arc<str>,
        /// How many there are now.
        count: usize,
        /// Who came and who left, in words.
        changes: Vec<String>,
    },
    /// The endpoints of a backend cannot be found; those known last stay in force.
    DiscoveryFailed {
        /// The backend.
        backend: Arc<str>,
        /// Why.
        reason: String,
    },
    /// The endpoints of a backend can be found again.
    DiscoveryRestored {
        /// The backend.
        backend: Arc<str>,
    },
    /// Whoever keeps the limits of all instances cannot be asked.
    GlobalLimitsLost {
        /// Who, and why.
        reason: String,
    },
    /// Whoever keeps the limits of all instances can be asked again.
    GlobalLimitsRestored {
        /// Who.
        engine: String,
    },
    /// Certificate files hold something new, which is in force for new connections.
    CertificateChanged {
        /// Whose: a listener or a backend.
        subject: TlsSubject,
    },
    /// Certificate files cannot be read or do not fit together; what was read last stays in force.
    CertificateRefused {
        /// Whose: a listener or a backend.
        subject: TlsSubject,
        /// Why.
        reason: String,
    },
    /// A certificate ends soon, or has ended.
    CertificateExpiring {
        /// Whose: a listener or a backend.
        subject: TlsSubject,
        /// What is left of it.
        remaining: Duration,
    },
    /// An endpoint is left out for how it answers, or in shadow mode would be.
    EndpointEjected {
        /// Its backend.
        backend: Arc<str>,
        /// Its address.
        endpoint: Arc<str>,
        /// Why, with the numbers.
        cause: EjectionCause,
        /// For how long.
        ejection_time: Duration,
        /// Whether it only would be.
        is_shadow: bool,
    },
    /// An endpoint passed its probe and is asked again.
    EndpointReadmitted {
        /// Its backend.
        backend: Arc<str>,
        /// Its address.
        endpoint: Arc<str>,
        /// Whether it was never really out.
        is_shadow: bool,
    },
    /// A resource of the instance has become short, or is no longer.
    ProtectionChanged {
        /// Which, from which level to which, with what it says.
        change: OverloadLevelChange,
    },
    /// So few endpoints of a backend are healthy that health is ignored, or no longer.
    PanicChanged {
        /// The backend.
        backend: Arc<str>,
        /// Whether health is ignored now.
        is_panicking: bool,
    },
}

impl Event {
    /// The kind, as it stands in the event stream and the log.
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
            Self::PanicChanged { .. } => "panic_changed",
        }
    }

    /// Returns the name of the recovery that the event is about.
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

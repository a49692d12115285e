//! Protection of the instance: the signals of its cgroup, and the priorities of requests.
//!
//! This module does not know the current load. The levels are evaluated in `resilience/shed`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{mode::ModeSetting, units::Percent};

/// Rejects inbound requests by priority while the container is overloaded. A rejected client
/// receives 503 with the reason `shed`.
///
/// These requests are never rejected:
///
/// - Requests to the probes and to the rest of the admin server.
/// - Requests for the path of the backend's own active check, and calls of the gRPC health
///   service.
/// - Outbound requests, because they complete admitted inbound requests.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProtectionSection {
    /// Whether requests are rejected. Shadow only counts the requests that would be rejected.
    /// Default Enforce.
    pub mode: ModeSetting,
    /// Resource signals of cgroup v2, sampled once per second. A signal that the system does
    /// not provide is not monitored, and the log reports it.
    pub signals: ProtectionSignals,
    /// Priority classes of requests. If this section is present, each class may use only a part
    /// of `connectionLimits.maxParallelRequests` on inbound routes: 60, 75, 90 and 100 %,
    /// lowest class first. A request over that part is rejected immediately and does not wait
    /// in the queue.
    pub shed: Option<LoadShedding>,
}

/// Resource signals that raise the overload level. A signal enters a level after 10 s at or
/// above its threshold. It leaves the level after 30 s below 90 % of the threshold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProtectionSignals {
    /// CPU utilization in percent of the CPU limit (`cpu.max`), or of all CPUs without a limit.
    /// Default warning 70, critical 90. An empty section disables the signal.
    pub cpu: Option<SignalLevels>,
    /// Memory in use in percent of the memory limit (`memory.max`), without reclaimable memory
    /// (`inactive_file`). It is not monitored without a limit. Default warning 75, critical 90.
    /// An empty section disables the signal.
    pub memory: Option<SignalLevels>,
    /// Share of the last 10 s, in percent, in which some task waited for the CPU (`some` in
    /// `cpu.pressure`). Default not monitored.
    pub cpu_pressure: Option<SignalLevels>,
    /// Share of the last 10 s, in percent, in which some task waited for memory (`some` in
    /// `memory.pressure`). Default not monitored.
    pub memory_pressure: Option<SignalLevels>,
}

/// Thresholds of a signal, in percent. A level without a threshold is never entered.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SignalLevels {
    /// Threshold above 0 from which requests of the lowest class are rejected.
    pub warning: Option<Percent>,
    /// Threshold above 0, at least `warning`, from which a share of the third class is rejected
    /// as well. The share rises by 10 percentage points per second while a signal is at or
    /// above this threshold. Otherwise it falls by 5 points per second.
    pub critical: Option<Percent>,
}

/// Priority classes of requests, and the header that names them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadShedding {
    /// Request header that names the class. Default `x-outrigger-priority`.
    pub header: Option<String>,
    /// Names of the four classes, highest first, each different. Case is ignored. A request
    /// without a class, or with an unknown one, belongs to the third class. Default critical,
    /// high, normal, low.
    pub classes: Option<Vec<String>>,
}

//! The protection of the instance itself: what its cgroup says, and who is refused first.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{document::ModeSetting, units::Percent};

/// Sheds inbound requests by priority while the container is short of something. The probes and the admin server are never refused, nor are requests
/// for the path of the backend's own active check and gRPC's health service; and outbound requests neither: they finish what was let in.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProtectionSection {
    /// Whether it acts; Shadow counts what would have been refused.
    pub mode: ModeSetting,
    /// What is watched: cgroup v2, each second. What this system does not tell is not watched, and the log says so.
    pub signals: ProtectionSignals,
    /// Who is refused first. With this section, the classes also fill `connectionLimits.maxParallelRequests` of inbound routes only so far: the lowest
    /// to 60 %, then 75, 90 and 100 %; over its part a request is refused at once, and does not wait in the queue.
    pub shed: Option<LoadShedding>,
}

/// What is watched. Each rises to a level when it has been at or above it for 10 s, and falls when it has been below nine tenths of it for 30 s.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProtectionSignals {
    /// Percent of the CPU that the container may use (`cpu.max`, else all of the machine's). Default 70 and 90.
    pub cpu: Option<SignalLevels>,
    /// Percent of the memory that it may use (`memory.max`), without what the system can take back (`inactive_file`). Default 75 and 90.
    pub memory: Option<SignalLevels>,
    /// Percent of the last 10 s in which something waited for the CPU (`cpu.pressure`, `some`). Not watched unless it is written.
    pub cpu_pressure: Option<SignalLevels>,
    /// Percent of the last 10 s in which something waited for memory (`memory.pressure`, `some`). Not watched unless it is written.
    pub memory_pressure: Option<SignalLevels>,
}

/// Two levels.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SignalLevels {
    /// From here the lowest class is refused.
    pub warning: Option<Percent>,
    /// From here a share of the third class is refused as well, which rises by 10 % each second at this level and falls by 5 below it.
    pub critical: Option<Percent>,
}

/// Who is refused first.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadShedding {
    /// The header that names the class of a request. Default `x-outrigger-priority`.
    pub header: Option<String>,
    /// The four classes, highest first; a request without one, or with another, is of the third. Default critical, high, normal, low.
    pub classes: Option<Vec<String>>,
}

//! What the instance does about trouble that stays, and what it writes down.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::ModeSetting,
    units::{Percent, PolicyDuration, StatusRange},
};

/// What to do about trouble that stays.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryEntry {
    /// The name, unique among recoveries.
    pub name: String,
    /// Whether it acts; Shadow tells what it would do.
    #[serde(default)]
    pub mode: ModeSetting,
    /// What the trouble is.
    pub trigger: RecoveryTrigger,
    /// What is done, one rung at a time.
    pub ladder: Vec<RecoveryRung>,
    /// The time between two actions. Default 10m.
    pub cooldown: Option<PolicyDuration>,
    /// Actions in any hour. Default 3.
    pub max_per_hour: Option<u32>,
}

/// What the trouble is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryTrigger {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: RecoveryTriggerType,
    /// The backend whose breaker is watched.
    pub backend: String,
    /// How long the breaker must not have been closed.
    pub duration: PolicyDuration,
}

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RecoveryTriggerType {
    /// A breaker of the backend that is not closed for so long, through all its half-open rounds.
    CircuitOpenFor,
}

/// One rung of a ladder.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryRung {
    /// What is done.
    pub action: RecoveryActionSection,
    /// When it is undone. Default OnRecovery for what can be undone.
    pub undo: Option<UndoCondition>,
}

/// When an action is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum UndoCondition {
    /// When the trigger no longer holds.
    OnRecovery,
}

/// What is done.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryActionSection {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: RecoveryActionType,
    /// For Webhook: an `http://` address that gets a POST of a JSON object.
    pub url: Option<String>,
    /// For Webhook: the time for the call. Default 3s.
    pub timeout: Option<PolicyDuration>,
}

/// A kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RecoveryActionType {
    /// Calls an address.
    Webhook,
    /// Makes this instance unready until the trouble is over.
    FailReadiness,
}

/// What is written down about requests.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// One line per request.
    pub access_log: Option<AccessLogSection>,
}

/// One line per request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLogSection {
    /// Whether and how. Default JSON.
    pub format: Option<AccessLogFormat>,
    /// The share of requests that is written. Default 100.
    pub sampling_percentage: Option<Percent>,
    /// Statuses that are always written.
    pub always_log_codes: Option<Vec<StatusRange>>,
}

/// How a request is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    #[default]
    JSON,
    /// Not at all.
    Off,
}

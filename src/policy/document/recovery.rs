//! Recovery actions of the instance.
//!
//! This module does not know whether a problem persists.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{mode::ModeSetting, units::PolicyDuration};

/// Actions that the sidecar takes, one after another, while a problem persists.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryEntry {
    /// Name of the recovery, unique among recoveries.
    pub name: String,
    /// Whether the actions are taken. Shadow only reports the actions that would be taken.
    /// Default Enforce.
    #[serde(default)]
    pub mode: ModeSetting,
    /// Problem that starts the recovery.
    pub trigger: RecoveryTrigger,
    /// Actions in order of severity, at least one. Each action is taken once, after the previous
    /// action and its cooldown.
    pub ladder: Vec<RecoveryRung>,
    /// Minimum time between two actions, at least 1s. Default 10m.
    pub cooldown: Option<PolicyDuration>,
    /// Maximum number of actions in any hour, at least 1. Default 3.
    pub max_per_hour: Option<u32>,
}

/// Problem that starts a recovery.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryTrigger {
    /// Type of the problem.
    #[serde(rename = "type")]
    pub kind: RecoveryTriggerType,
    /// Backend whose circuit breakers are monitored. A `circuitBreaker` of a route or a policy
    /// must apply to it.
    pub backend: String,
    /// Time for which a breaker must not have been closed.
    pub duration: PolicyDuration,
}

/// Type of a problem that starts a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RecoveryTriggerType {
    /// A breaker of the backend has not been closed for `duration`, across all half-open
    /// rounds. A forced-open breaker and a breaker in Shadow mode do not count.
    CircuitOpenFor,
}

/// One rung of a ladder: an action, and when it is undone.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryRung {
    /// Action of this rung.
    pub action: RecoveryActionSection,
    /// When the action is undone. Default OnRecovery for FailReadiness. A Webhook cannot be
    /// undone.
    pub undo: Option<UndoCondition>,
}

/// Condition under which an action is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum UndoCondition {
    /// The action is undone when the trigger no longer holds.
    OnRecovery,
}

/// Action of a recovery.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryActionSection {
    /// Type of the action.
    #[serde(rename = "type")]
    pub kind: RecoveryActionType,
    /// Address that receives a POST request with a JSON object, only for Webhook. It starts
    /// with `http://`; `https://` is not supported.
    pub url: Option<String>,
    /// Maximum time of the webhook request, above 0s, only for Webhook. Default 3s.
    pub timeout: Option<PolicyDuration>,
}

/// Type of a recovery action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RecoveryActionType {
    /// Sends a POST request to `url`.
    Webhook,
    /// Makes this instance unready until the trigger no longer holds.
    FailReadiness,
}

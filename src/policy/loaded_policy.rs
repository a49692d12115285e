//! The result of loading policies.

use crate::policy::{diagnostic::Diagnostics, snapshot::PolicySnapshot};

/// Compiled policy set, with the warnings about it.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// Compiled policy set, ready to be activated.
    pub snapshot: PolicySnapshot,
    /// Problems that are probably mistakes but do not prevent activation.
    pub warnings: Diagnostics,
}

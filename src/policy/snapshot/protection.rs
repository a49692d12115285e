//! Compiled overload protection, which sheds requests by priority while resources are short.
//!
//! The types hold configuration only. They do not know the current overload level.

use http::HeaderName;

use crate::resilience::{Mode, shed::ProtectionConfig};

/// Configuration of overload protection.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtectionSpec {
    /// Whether requests are shed, shedding is only logged, or off.
    pub mode: Mode,
    /// Thresholds of the monitored signals.
    pub config: ProtectionConfig,
    /// Request header that names the priority class.
    pub priority_header: HeaderName,
    /// Names of the priority classes, highest first.
    pub priority_classes: [String; 4],
    /// Whether each class may use only its share of a concurrency limit.
    pub limits_concurrency_by_class: bool,
}

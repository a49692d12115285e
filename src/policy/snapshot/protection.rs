//! How the instance protects itself.

use http::HeaderName;

use crate::resilience::{Mode, shed::ProtectionConfig};

/// How the instance protects itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtectionSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// What is watched, and from where on.
    pub config: ProtectionConfig,
    /// The header that names the class of a request.
    pub priority_header: HeaderName,
    /// The classes, highest first.
    pub priority_classes: [String; 4],
    /// Whether each class fills a concurrency limit only so far.
    pub limits_concurrency_by_class: bool,
}

//! What every protective section provides: its format, its compiled form and its description.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::policy::{
    report::{DiagnosticReport, FieldLocation},
    sections::{description::Description, origin::SectionOrigin},
};

/// A protective section as it is written in a policy file.
///
/// The type that implements the trait is the format. Its documentation comments are the
/// descriptions in the JSON Schema.
pub trait Section: DeserializeOwned {
    /// Key of the section in a policy file.
    const KEY: &'static str;

    /// Compiled form. It is an `Option` if requests can be without the section.
    type Spec: PartialEq;

    /// Compiles the nearest section that was found, or the built-in defaults.
    ///
    /// Invalid values are reported, and replaced by valid ones, so that compilation continues.
    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Self::Spec;

    /// Returns the effective values; one description for each rule of a section with rules. A
    /// section that is off or absent has none.
    fn describe(spec: &Self::Spec) -> Vec<Description>;

    /// Returns what happens to the state of the section when a reload replaces `old` by `new`.
    /// It is empty for a section without state.
    fn describe_state_change(old: &Self::Spec, new: &Self::Spec) -> String {
        _ = (old, new);
        String::new()
    }

    /// Returns one line for each difference, and none if both are equal.
    fn describe_changes(old: &Self::Spec, new: &Self::Spec) -> Vec<String> {
        if old == new {
            return Vec::new();
        }
        let values = match (Self::describe(old).pop(), Self::describe(new).pop()) {
            (None, None) => return Vec::new(),
            (Some(_), None) => return vec!["removed".to_owned()],
            (None, Some(after)) => return vec![format!("added: {after}")],
            (Some(before), Some(after)) => after.describe_difference(&before),
        };
        let effect = Self::describe_state_change(old, new);
        if effect.is_empty() {
            return vec![values];
        }
        vec![format!("{values}; {effect}")]
    }
}

/// Section that was found, with its origin and location.
#[derive(Debug)]
pub struct FoundSection<'a, S> {
    pub(in crate::policy) origin: SectionOrigin,
    pub(in crate::policy) at: FieldLocation<'a>,
    pub(in crate::policy) section: &'a S,
}

/// What a section is compiled with: the rest of the policy set, and the diagnostics.
#[derive(Debug)]
pub struct SectionContext<'c> {
    pub(in crate::policy) report: &'c mut DiagnosticReport,
    pub(in crate::policy) facts: &'c PolicySetFacts<'c>,
    /// Name of the backend that the section applies to. It is empty for a section that applies
    /// before a backend is selected.
    pub(in crate::policy) backend: &'c str,
    /// Effective timeout of the whole request; `None` means no limit.
    pub(in crate::policy) request_timeout: Option<Duration>,
    /// Effective timeout of one attempt; `None` means no limit.
    pub(in crate::policy) attempt_timeout: Option<Duration>,
}

/// Facts about the policy set that sections refer to.
#[derive(Debug)]
pub(in crate::policy) struct PolicySetFacts<'a> {
    /// Names of all backends.
    pub(in crate::policy) backends: Vec<&'a str>,
    /// Whether the set has a `globalRateLimit`.
    pub(in crate::policy) has_global_rate_limit: bool,
}

//! What every protective section provides: its format, its compiled form and its description.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::policy::{
    report::{DiagnosticReport, FieldLocation},
    sections::origin::SectionOrigin,
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

    /// Returns the effective values in words, with their origin; one line for each rule of a
    /// section with several rules. A section without effect has no line.
    fn describe(spec: &Self::Spec) -> Vec<String>;

    /// Returns what happens to the state of the section when a reload replaces `old` by `new`.
    /// It is empty for a section without state.
    fn describe_state_change(old: &Self::Spec, new: &Self::Spec) -> &'static str {
        _ = (old, new);
        ""
    }

    /// Returns one line for each difference, and none if both have the same effect.
    fn describe_changes(old: &Self::Spec, new: &Self::Spec) -> Vec<String> {
        if old == new {
            return Vec::new();
        }
        let in_words = |spec| Self::describe(spec).join("; ");
        let values = describe_difference(&in_words(old), &in_words(new));
        match Self::describe_state_change(old, new) {
            "" => vec![values],
            effect => vec![format!("{values}; {effect}")],
        }
    }
}

/// Returns the parts that differ of two descriptions, whose parts are separated by commas.
fn describe_difference(old: &str, new: &str) -> String {
    if old == new {
        // A value that is not shown, such as the body of a response, is different.
        return format!("changed: {new}");
    }
    // The origin is a part of its own.
    let parts = |text: &str| -> Vec<String> {
        let text = text.replace("   (from ", ", (from ");
        text.split(", ").map(str::to_owned).collect()
    };
    let (before, after) = (parts(old), parts(new));
    if before.len() != after.len() || old.is_empty() || new.is_empty() {
        let or_none = |text: &str| if text.is_empty() { "none" } else { text }.to_owned();
        return format!("{} -> {}", or_none(old), or_none(new));
    }
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after);
    let changed: Vec<String> = changed
        .map(|(before, after)| format!("{before} -> {after}"))
        .collect();
    changed.join(", ")
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

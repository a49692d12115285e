//! Collects the differences between two specifications, in words.

use std::{fmt::Display, time::Duration};

use crate::policy::units::PolicyDuration;

/// Differences between two specifications, one line each.
#[derive(Default)]
pub(super) struct Changes(Vec<String>);

impl Changes {
    /// Returns the lines, each after a prefix.
    pub(super) fn into_lines(self, prefix: &str) -> impl Iterator<Item = String> {
        self.0
            .into_iter()
            .map(move |line| format!("{prefix}{line}"))
    }

    /// Adds a line in words.
    pub(super) fn push(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }

    /// Compares two values that can be shown.
    pub(super) fn value<T: PartialEq + Display>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.0.push(format!("{key} {old} -> {new}"));
        }
    }

    /// Compares two values that may be absent.
    pub(super) fn optional<T: PartialEq + Display>(
        &mut self,
        key: &str,
        old: Option<&T>,
        new: Option<&T>,
    ) {
        if old != new {
            let in_words = |value: Option<&T>| value.map_or("none".to_owned(), T::to_string);
            let (old, new) = (in_words(old), in_words(new));
            self.0.push(format!("{key} {old} -> {new}"));
        }
    }

    pub(super) fn duration(&mut self, key: &str, old: Duration, new: Duration) {
        self.value(key, &PolicyDuration(old), &PolicyDuration(new));
    }

    /// Compares two lists, and shows their items.
    pub(super) fn list<T: PartialEq + Display>(&mut self, key: &str, old: &[T], new: &[T]) {
        if old != new {
            let in_words = |items: &[T]| {
                let items: Vec<String> = items.iter().map(T::to_string).collect();
                format!("[{}]", items.join(", "))
            };
            let (old, new) = (in_words(old), in_words(new));
            self.0.push(format!("{key} {old} -> {new}"));
        }
    }

    /// Compares two values that are not shown, because they are long or secret. `effect` states
    /// what happens to their state; it may be empty.
    pub(super) fn hidden<T: PartialEq>(&mut self, key: &str, old: &T, new: &T, effect: &str) {
        if old != new {
            let separator = if effect.is_empty() { "" } else { "; " };
            self.0.push(format!("{key} changed{separator}{effect}"));
        }
    }
}

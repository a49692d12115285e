//! Describes the effective values of a section in words.

use std::fmt::{self, Display};

use crate::policy::sections::origin::SectionOrigin;

/// Effective values of a section, each with its policy key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    values: Vec<(&'static str, String)>,
    origin: Option<String>,
}

impl Description {
    /// Adds a value with its key in the policy file.
    pub(in crate::policy) fn with(mut self, key: &'static str, value: impl Display) -> Self {
        self.values.push((key, value.to_string()));
        self
    }

    /// Adds a list of values, in brackets.
    pub(in crate::policy) fn with_list<T: Display>(
        self,
        key: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        self.with(key, format_args!("[{}]", values.join(" ")))
    }

    /// Sets the source of the section.
    pub(in crate::policy) fn with_origin(mut self, origin: &SectionOrigin) -> Self {
        self.origin = Some(origin.to_string());
        self
    }

    /// Returns the values that differ from an older description, by key. `none` stands for a
    /// value that one of the two does not have.
    pub(in crate::policy) fn describe_difference(&self, old: &Self) -> String {
        let find = |description: &Self, wanted: &str| {
            let mut values = description.values.iter();
            let value = values.find(|(key, _)| *key == wanted);
            value.map(|(_, value)| value.clone())
        };
        let removed_keys = old.values.iter().map(|(key, _)| *key);
        let removed_keys = removed_keys.filter(|key| find(self, key).is_none());
        let keys = self.values.iter().map(|(key, _)| *key).chain(removed_keys);
        let mut differences: Vec<String> = keys
            .map(|key| (key, find(old, key), find(self, key)))
            .filter(|(_, before, after)| before != after)
            .map(|(key, before, after)| {
                let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
                format!("{key} {} -> {}", or_none(before), or_none(after))
            })
            .collect();
        if let (Some(before), Some(after)) = (&old.origin, &self.origin)
            && before != after
        {
            differences.push(format!("origin {before} -> {after}"));
        }
        if differences.is_empty() {
            // A value that is not shown, such as the body of a response, is different.
            return "changed".to_owned();
        }
        differences.join(", ")
    }
}

impl Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (key, value) in &self.values {
            write!(f, "{separator}{key} {value}")?;
            separator = ", ";
        }
        match &self.origin {
            Some(origin) => write!(f, "   (from {origin})"),
            None => Ok(()),
        }
    }
}

/// Returns what happens to state that a reload may rename.
///
/// A name that changed may belong to state that other routes already use. Otherwise `retained`
/// or `reset` applies.
pub(in crate::policy) fn describe_state(
    old_name: &str,
    new_name: &str,
    is_retained: bool,
    [retained, reset]: [&str; 2],
) -> String {
    if old_name != new_name {
        format!("the state `{new_name}` applies")
    } else if is_retained {
        retained.to_owned()
    } else {
        reset.to_owned()
    }
}

//! State that survives reloads of the policies, by name.
//!
//! A policy set names the state that it uses. The table creates the state at its first use,
//! applies a changed specification, and removes what the set does not name. It does not know
//! what a specification means; [`Reconfigure`] does.

use std::{collections::HashMap, sync::Arc, time::Instant};

use crate::telemetry::Telemetry;

/// Inputs for creating state that are the same for a whole policy set.
#[derive(Debug, Clone, Copy)]
pub struct BuildContext<'b> {
    /// Sink for events and metrics.
    pub telemetry: &'b Arc<Telemetry>,
    /// Time at which the set becomes active.
    pub now: Instant,
    /// Time from which stored times of rate limits count; the same for the whole process.
    pub epoch: Instant,
}

/// State that is created from a specification and adapts to a changed one.
pub trait Reconfigure: Sized {
    /// Part of the policies that configures the state.
    type Spec: ?Sized;

    /// Creates the state at the first use of its name.
    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self;

    /// Applies a specification that may have changed.
    ///
    /// The state changes in place, or the method returns its replacement.
    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self>;
}

/// State of one kind, by name.
#[derive(Debug)]
pub struct Table<T>(HashMap<Arc<str>, TableEntry<T>>);

#[derive(Debug)]
struct TableEntry<T> {
    state: Arc<T>,
    /// Whether the policy set that is being built names the state.
    is_used: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Reconfigure> Table<T> {
    /// Returns the state of a name, which is created or reconfigured, and marks it as used.
    pub fn ensure(&mut self, name: &Arc<str>, spec: &T::Spec, context: BuildContext<'_>) -> Arc<T> {
        let Some(entry) = self.0.get_mut(name) else {
            let state = Arc::new(T::create(name, spec, context));
            self.insert(name.clone(), state.clone());
            return state;
        };
        entry.is_used = true;
        if let Some(replacement) = entry.state.reconfigure(spec, context) {
            entry.state = Arc::new(replacement);
        }
        entry.state.clone()
    }
}

impl<T> Table<T> {
    /// Adds state that was created elsewhere, and marks it as used.
    pub fn insert(&mut self, name: Arc<str>, state: Arc<T>) {
        let entry = TableEntry {
            state,
            is_used: true,
        };
        self.0.insert(name, entry);
    }

    /// Removes the state that was not used since the last call, and returns its names.
    pub fn remove_unused(&mut self) -> Vec<Arc<str>> {
        let mut removed = Vec::new();
        self.0.retain(|name, entry| {
            let is_used = std::mem::take(&mut entry.is_used);
            if !is_used {
                removed.push(name.clone());
            }
            is_used
        });
        removed
    }

    /// Returns all state, sorted by name.
    #[must_use]
    pub fn sorted(&self) -> Vec<Arc<T>> {
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_by_key(|(name, _)| *name);
        let states = entries.into_iter().map(|(_, entry)| entry.state.clone());
        states.collect()
    }
}

#[cfg(test)]
mod tests;

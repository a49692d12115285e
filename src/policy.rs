//! From policy files to one immutable, compiled snapshot, or to all their faults at once.
//!
//! `source` reads a directory, `tree` finds positions, `structure` checks shapes against the schema, `document` is the spelling,
//! `compile` makes meaning, `snapshot` is the result, `diff` tells two results apart in words. Nothing here knows sockets,
//! sessions or live state: the same code serves the sidecar, `outrigger check` and `outrigger explain`.

pub mod compile;
pub mod diagnostic;
pub mod diff;
pub mod document;
pub mod endpoints;
pub mod matching;
mod schema_check;
pub mod snapshot;
pub mod source;
mod tree;
pub mod units;

use std::{collections::HashMap, path::Path};

use crate::policy::{diagnostic::Diagnostics, snapshot::PolicySnapshot, source::PolicySource};

/// A compiled set and what there is to say about it.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The compiled set.
    pub snapshot: PolicySnapshot,
    /// What is suspicious but possible.
    pub warnings: Diagnostics,
}

/// Reads and compiles a directory or a file.
///
/// # Errors
/// All faults of all files.
pub fn load(
    path: &Path,
    environment: &HashMap<String, String>,
) -> Result<LoadedPolicy, Diagnostics> {
    load_source(&PolicySource::read(path)?, environment)
}

/// Compiles what was read.
///
/// # Errors
/// All faults of all files.
pub fn load_source(
    source: &PolicySource,
    environment: &HashMap<String, String>,
) -> Result<LoadedPolicy, Diagnostics> {
    compile::compile(source, environment)
}

/// The JSON Schema (draft 2020-12) of a document, derived from the types that read it.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(document::Document);
    schema.insert("title".into(), "Outrigger resilience policy".into());
    schema.to_value()
}

//! Compiles policy files into one immutable snapshot, or reports all of their errors at once.
//!
//! The modules form a pipeline:
//!
//! - `source` reads a directory or a file.
//! - `tree` finds the position of each value in the text.
//! - `schema_check` compares the shape of the text with the JSON Schema.
//! - `document` holds the types that mirror the text.
//! - `sections` holds each protective section: its format, its compiled form and its compile step.
//! - `compile` resolves names, applies defaults and checks values.
//! - `snapshot` is the result.
//! - `diff` describes the difference between two snapshots in words.
//!
//! The sidecar, `outrigger check` and `outrigger explain` all use this code. The module knows
//! no sockets, no sessions and no live state.

pub mod compile;
pub mod diagnostic;
pub mod diff;
pub mod document;
pub mod endpoints;
mod grpc_code;
mod loaded_policy;
pub mod matching;
mod mode;
mod path_match;
mod report;
mod schema_check;
pub mod sections;
pub mod snapshot;
pub mod source;
mod tree;
pub mod units;

use std::{collections::HashMap, path::Path};

use crate::policy::{diagnostic::Diagnostics, source::PolicySource};
pub use crate::policy::{document::json_schema, loaded_policy::LoadedPolicy};

/// Reads and compiles all policy files of a directory, or one file.
///
/// `environment` holds the values for `${NAME}` references.
///
/// # Errors
/// Returns the errors of all files, with their locations.
pub fn load(
    path: &Path,
    environment: &HashMap<String, String>,
) -> Result<LoadedPolicy, Diagnostics> {
    load_source(&PolicySource::read(path)?, environment)
}

/// Compiles policy files that were already read.
///
/// # Errors
/// Returns the errors of all files, with their locations.
pub fn load_source(
    source: &PolicySource,
    environment: &HashMap<String, String>,
) -> Result<LoadedPolicy, Diagnostics> {
    compile::compile(source, environment)
}

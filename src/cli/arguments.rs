//! Values of command-line arguments that several commands read.

use std::{path::PathBuf, time::Duration};

use crate::policy::units::PolicyDuration;

/// Parses a duration as policies write it, for example `200ms` or `5s`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<PolicyDuration>()
        .map(|span| span.0)
        .map_err(|invalid| invalid.to_string())
}

/// Reads the admin token from its file, without surrounding white space. It needs at least 16
/// characters.
pub(super) fn read_admin_token(path: &PathBuf) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!(
            "the admin token cannot be read from {}: {error}",
            path.display()
        )
    })?;
    match text.trim() {
        token if token.len() < 16 => Err(format!(
            "the admin token in {} is too short; write at least 16 characters into it",
            path.display()
        )),
        token => Ok(token.to_owned()),
    }
}

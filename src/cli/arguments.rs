//! Inputs that several commands read: arguments, files and the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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

/// Options that locate the admin server of a running sidecar and authorize changes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AdminOptions {
    /// Address of the admin server.
    #[arg(
        long,
        env = "OUTRIGGER_ADMIN",
        default_value = "127.0.0.1:16090",
        value_name = "ADDR"
    )]
    pub(super) admin: SocketAddr,
    /// File with the bearer token of the admin server. Only changes from another host need it.
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub(super) admin_token_file: Option<PathBuf>,
}

/// Returns the environment variables, for `${NAME}` in policies. Variables that are not valid
/// Unicode are omitted.
pub(super) fn read_environment() -> std::collections::HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

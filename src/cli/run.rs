//! `outrigger run`: the sidecar.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{Outcome, complain, environment, remote::span};
use crate::{
    app::{App, StartError},
    settings::Settings,
    state::lifecycle::End,
    telemetry::{
        access_log::AccessLog,
        log::{self, LogFormat},
    },
};

/// Settings of the process. Flags win over the environment.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The policy directory, or one file.
    #[arg(
        long,
        env = "OUTRIGGER_POLICIES",
        default_value = "policies",
        value_name = "DIR"
    )]
    policies: PathBuf,
    /// Where the admin server listens.
    #[arg(
        long,
        env = "OUTRIGGER_ADMIN",
        default_value = "127.0.0.1:16090",
        value_name = "ADDR"
    )]
    admin: SocketAddr,
    /// A directory for the last good policies, from which a restart with a broken file starts.
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A file with the token that callers from other hosts must show to change something.
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Threads of the data plane. By default as many as there are CPUs, or as the cgroup allows.
    #[arg(long, env = "OUTRIGGER_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// How often the policy directory is looked at, besides the system's notices.
    #[arg(long, env = "OUTRIGGER_POLL_INTERVAL", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    poll_interval: Duration,
    /// The zone that this instance is in, to prefer endpoints in it; as in the node's label `topology.kubernetes.io/zone`.
    #[arg(long, env = "OUTRIGGER_ZONE", value_name = "ZONE")]
    zone: Option<String>,
    /// A name server to ask instead of those of the system.
    #[arg(long, env = "OUTRIGGER_NAME_SERVER", value_name = "ADDR")]
    name_server: Option<SocketAddr>,
    /// The cgroup whose resources `protection` watches; by default that of this process. To watch the whole pod, mount its cgroup and name it here.
    #[arg(long, env = "OUTRIGGER_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// A path for a socket in the file system over which a new process takes the listening sockets of this one, without refusing a connection. If a
    /// process waits there already, this one takes over from it.
    #[arg(long, env = "OUTRIGGER_HANDOVER", value_name = "PATH")]
    handover: Option<PathBuf>,
    /// What is logged: a level, or directives like `info,outrigger::proxy=debug`.
    #[arg(long, env = "OUTRIGGER_LOG_LEVEL", default_value = "info", value_parser = log_level, value_name = "LEVEL")]
    log_level: String,
    /// How it is logged.
    #[arg(long, env = "OUTRIGGER_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    span(text).and_then(|span| {
        if span.is_zero() {
            Err("must not be zero".into())
        } else {
            Ok(span)
        }
    })
}

/// A word by itself is a level; `tracing` would take any other for the name of a target, and log nothing.
fn log_level(text: &str) -> Result<String, String> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    if text.contains('=') || levels.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("a level is one of {}", levels.join(", ")))
    }
}

impl Run {
    pub(super) fn run(self) -> Outcome {
        let admin_token = match self.admin_token_file.as_ref().map(read_token).transpose() {
            Ok(token) => token,
            Err(why) => {
                complain(&why);
                return Outcome::Usage;
            }
        };
        log::init(
            &self.log_level,
            if matches!(self.log_format, Format::Json) {
                LogFormat::Json
            } else {
                LogFormat::Text
            },
        );
        let mut settings = Settings::new(self.policies, self.admin);
        settings.state_dir = self.state_dir;
        settings.poll_interval = self.poll_interval;
        settings.admin_token = admin_token;
        settings.zone = self.zone;
        settings.name_server = self.name_server;
        settings.cgroup = self.cgroup;
        settings.handover = self.handover;
        settings.takes_supervised_sockets = true;
        settings.heeds_signals = true;
        settings.environment = environment();
        if let Some(workers) = self.workers {
            settings.workers = workers;
        }
        match App::start(settings, AccessLog::to_stdout()) {
            Ok(app) => match app.wait() {
                // Clean or not, it left as it was asked to; the event has said how.
                End::Drained { .. } | End::AtOnce => Outcome::Fine,
                End::Failed => Outcome::Bug,
            },
            Err(error) => refused(&error),
        }
    }
}

/// Says why an instance cannot start.
pub(super) fn refused(error: &StartError) -> Outcome {
    match error {
        StartError::Policy(faults) => {
            complain(&faults.to_human());
            complain(
                "outrigger: the policies are refused, and there are no last good ones (--state-dir); `outrigger check` looks without starting",
            );
            Outcome::PolicyRefused
        }
        StartError::Bind(why) => {
            complain(&format!(
                "outrigger: {why}; stop what holds the address, or choose another"
            ));
            Outcome::Unavailable
        }
        StartError::System(_) => {
            complain(&format!("outrigger: {error}"));
            Outcome::Bug
        }
    }
}

/// Reads a token from its file.
pub(super) fn read_token(path: &PathBuf) -> Result<String, String> {
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

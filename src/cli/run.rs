//! `outrigger run`: starts the sidecar and waits until it ends.
//!
//! The module turns flags and environment variables into [`Settings`]. It does not read the
//! policies; [`App::start`] does.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::{
    app::{App, StartError},
    cli::{
        arguments::{parse_duration, read_admin_token, read_environment},
        output::{CommandOutcome, print_error},
    },
    policy::units::ByteSize,
    settings::Settings,
    state::instance::lifecycle::ExitReason,
    telemetry::{
        access_log::AccessLogWriter,
        log::{self, ProcessLogFormat},
    },
};

/// Minimum memory budget, in bytes. A smaller one rejects requests while nothing is wrong.
const MIN_MEMORY_BUDGET_BYTES: u64 = 4 << 20;

/// Settings of the process. A flag overrides its environment variable.
#[derive(Debug, Args)]
pub(super) struct RunCommand {
    /// Policy directory, or one policy file.
    #[arg(
        long,
        env = "OUTRIGGER_POLICIES",
        default_value = "policies",
        value_name = "PATH"
    )]
    policies: PathBuf,
    /// Address that the admin server listens on.
    #[arg(
        long,
        env = "OUTRIGGER_ADMIN",
        default_value = "127.0.0.1:16090",
        value_name = "ADDR"
    )]
    admin: SocketAddr,
    /// Directory for the last valid policies. If the policies are invalid at a restart, the
    /// sidecar uses the stored ones.
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// File with the bearer token that clients on other hosts need for changes.
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Number of data plane threads. The default is the number of CPUs, or the CPU quota of the
    /// cgroup if that is lower.
    #[arg(long, env = "OUTRIGGER_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Maximum number of bytes that the data plane holds, for example `64Mi`. The default is
    /// half of the memory limit of the cgroup, or 256Mi without a limit.
    #[arg(
        long,
        env = "OUTRIGGER_MEMORY_BUDGET",
        value_parser = parse_memory_budget,
        value_name = "SIZE"
    )]
    memory_budget: Option<u64>,
    /// Interval at which the policy directory is checked, in addition to file system notifications.
    #[arg(
        long,
        env = "OUTRIGGER_POLL_INTERVAL",
        default_value = "5s",
        value_parser = parse_nonzero_duration,
        value_name = "DURATION"
    )]
    poll_interval: Duration,
    /// Zone of this instance, used to prefer endpoints in the same zone. Use the value of the
    /// node label `topology.kubernetes.io/zone`.
    #[arg(long, env = "OUTRIGGER_ZONE", value_name = "ZONE")]
    zone: Option<String>,
    /// DNS server that replaces those of the system.
    #[arg(long, env = "OUTRIGGER_NAME_SERVER", value_name = "ADDR")]
    name_server: Option<SocketAddr>,
    /// Cgroup whose resources `protection` monitors. The default is the cgroup of this process.
    /// To monitor the whole pod, mount its cgroup and pass its path.
    #[arg(long, env = "OUTRIGGER_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Path of the Unix socket for a handover. If a process listens there, the new process takes
    /// over its listening sockets. Otherwise it listens there for its successor.
    #[arg(long, env = "OUTRIGGER_HANDOVER", value_name = "PATH")]
    handover: Option<PathBuf>,
    /// Log level, or filter directives like `info,outrigger::proxy=debug`.
    #[arg(
        long,
        env = "OUTRIGGER_LOG_LEVEL",
        default_value = "info",
        value_parser = parse_log_level,
        value_name = "LEVEL"
    )]
    log_level: String,
    /// Format of the log: lines of text or JSON objects.
    #[arg(long, env = "OUTRIGGER_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormatFlag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormatFlag {
    Text,
    Json,
}

fn parse_nonzero_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|span| {
        if span.is_zero() {
            Err("must not be zero".into())
        } else {
            Ok(span)
        }
    })
}

fn parse_memory_budget(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(bytes)) if bytes >= MIN_MEMORY_BUDGET_BYTES => Ok(bytes),
        Ok(_) => Err(format!(
            "must be at least {}Mi",
            MIN_MEMORY_BUDGET_BYTES >> 20
        )),
        Err(invalid) => Err(invalid.to_string()),
    }
}

/// Accepts a level or filter directives. `tracing` takes any other single word as the name of a
/// target, and would then log nothing.
fn parse_log_level(text: &str) -> Result<String, String> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    if text.contains('=') || levels.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("a level is one of {}", levels.join(", ")))
    }
}

impl RunCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let admin_token = match self
            .admin_token_file
            .as_ref()
            .map(read_admin_token)
            .transpose()
        {
            Ok(token) => token,
            Err(reason) => {
                print_error(&reason);
                return CommandOutcome::UsageError;
            }
        };
        log::init(
            &self.log_level,
            if matches!(self.log_format, LogFormatFlag::Json) {
                ProcessLogFormat::Json
            } else {
                ProcessLogFormat::Text
            },
        );
        let mut settings = Settings::new(self.policies, self.admin);
        settings.state_dir = self.state_dir;
        settings.memory_budget = self.memory_budget;
        settings.poll_interval = self.poll_interval;
        settings.admin_token = admin_token;
        settings.zone = self.zone;
        settings.name_server = self.name_server;
        settings.cgroup_path = self.cgroup;
        settings.handover_path = self.handover;
        settings.uses_supervised_sockets = true;
        settings.handles_signals = true;
        settings.environment = read_environment();
        if let Some(workers) = self.workers {
            settings.worker_threads = workers;
        }
        match App::start(settings, AccessLogWriter::to_stdout()) {
            Ok(app) => match app.wait() {
                // The instance ended as requested; its last event tells whether the drain was
                // complete.
                ExitReason::Drained { .. } | ExitReason::Immediate => CommandOutcome::Success,
                ExitReason::Failed => CommandOutcome::InternalError,
            },
            Err(error) => report_start_error(&error),
        }
    }
}

/// Prints the reason why an instance cannot start, with the fix, and returns the outcome.
pub(super) fn report_start_error(error: &StartError) -> CommandOutcome {
    match error {
        StartError::Policy(faults) => {
            print_error(&faults.to_human());
            print_error(
                "outrigger: the policies are invalid, and no last valid policies are stored \
                 (--state-dir); `outrigger check` shows the errors without a start",
            );
            CommandOutcome::PolicyRefused
        }
        StartError::Bind(reason) => {
            print_error(&format!(
                "outrigger: {reason}; stop what holds the address, or choose another"
            ));
            CommandOutcome::Unavailable
        }
        StartError::System(_) => {
            print_error(&format!("outrigger: {error}"));
            CommandOutcome::InternalError
        }
    }
}

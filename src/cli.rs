//! The command line: one file per subcommand.
//!
//! Exit codes: 0 fine, 64 wrong usage or settings, 65 policy refused, 69 an address cannot be bound or reached, 70 own bug.
//! Errors go to standard error, and say what, where, and the mend.

mod admin_client;
mod check;
mod demo;
mod diff;
mod drain;
mod explain;
mod run;

use std::{ffi::OsString, io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CommandOutcome {
    Success,
    /// 1: the answer is no, as of a probe that fails.
    Negative,
    UsageError,
    PolicyRefused,
    Unavailable,
    InternalError,
}

impl From<CommandOutcome> for ExitCode {
    fn from(outcome: CommandOutcome) -> Self {
        Self::from(match outcome {
            CommandOutcome::Success => 0,
            CommandOutcome::Negative => 1,
            CommandOutcome::UsageError => 64,
            CommandOutcome::PolicyRefused => 65,
            CommandOutcome::Unavailable => 69,
            CommandOutcome::InternalError => 70,
        })
    }
}

/// A per-service resilience sidecar: circuit breakers, rate limits, retries, timeouts, health checks and lossless drain for HTTP.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Runs the sidecar.
    Run(run::RunCommand),
    /// Shows it at work: an app with faults that can be switched, the real sidecar in front of it, and a small load.
    Demo(demo::DemoCommand),
    /// Reads policies as the sidecar would, and shows every fault with its place and its mend.
    Check(check::CheckCommand),
    /// Prints the JSON Schema of the policy file.
    Schema,
    /// Shows which route a request would take, and every policy that holds for it with where it comes from.
    Explain(explain::ExplainCommand),
    /// Shows in words what a reload would change, keep and begin anew.
    Diff(diff::DiffCommand),
    /// Shows the state of a running sidecar.
    Status(AdminOptions),
    /// Makes a running sidecar send its callers away, and waits until it has drained; it goes on serving the app until SIGTERM.
    Drain(drain::DrainCommand),
    /// Makes a running sidecar read its policies again.
    Reload(AdminOptions),
    /// Shows or changes the breakers of a running sidecar.
    Breaker(admin_client::BreakerCommand),
    /// Asks a running sidecar whether it is ready: exit code 0 or 1, for exec probes.
    Healthcheck(admin_client::HealthcheckCommand),
}

/// Where a running sidecar is reached.
#[derive(Debug, Clone, clap::Args)]
struct AdminOptions {
    /// The address of its admin server.
    #[arg(
        long,
        env = "OUTRIGGER_ADMIN",
        default_value = "127.0.0.1:16090",
        value_name = "ADDR"
    )]
    admin: SocketAddr,
    /// A file with the token of its admin server.
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

/// Runs the command that the arguments name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and not wrong. If nobody can be told, nobody can.
            _ = error.print();
            return if error.use_stderr() {
                CommandOutcome::UsageError
            } else {
                CommandOutcome::Success
            }
            .into();
        }
    };
    let outcome = match cli.command {
        CliCommand::Run(run) => run.run(),
        CliCommand::Demo(demo) => demo.run(),
        CliCommand::Check(check) => check.run(),
        CliCommand::Schema => print_schema(),
        CliCommand::Explain(explain) => explain.run(),
        CliCommand::Diff(diff) => diff.run(),
        CliCommand::Status(admin) => admin_client::print_status(&admin),
        CliCommand::Drain(drain) => drain.run(),
        CliCommand::Reload(admin) => admin_client::request_reload(&admin),
        CliCommand::Breaker(breaker) => breaker.run(),
        CliCommand::Healthcheck(healthcheck) => healthcheck.run(),
    };
    outcome.into()
}

fn print_schema() -> CommandOutcome {
    print_line(&format!("{:#}", crate::policy::json_schema()));
    CommandOutcome::Success
}

/// Prints to standard output.
fn print_line(text: &str) {
    // Whoever closed the pipe wants no more.
    _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
}

/// Prints to standard error.
fn print_error(text: &str) {
    // If nobody can be told, nobody can.
    _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}

/// The environment, for `${NAME}` in policies; what is not text cannot be meant.
fn read_environment() -> std::collections::HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

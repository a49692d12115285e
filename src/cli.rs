//! The command line: one file per subcommand.
//!
//! Exit codes: 0 fine, 64 wrong usage or settings, 65 policy refused, 69 an address cannot be bound or reached, 70 own bug.
//! Errors go to standard error, and say what, where, and the mend.

mod check;
mod demo;
mod diff;
mod drain;
mod explain;
mod remote;
mod run;

use std::{ffi::OsString, io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    /// 1: the answer is no, as of a probe that fails.
    No,
    Usage,
    PolicyRefused,
    Unavailable,
    Bug,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Fine => 0,
            Outcome::No => 1,
            Outcome::Usage => 64,
            Outcome::PolicyRefused => 65,
            Outcome::Unavailable => 69,
            Outcome::Bug => 70,
        })
    }
}

/// A per-service resilience sidecar: circuit breakers, rate limits, retries, timeouts, health checks and lossless drain for HTTP.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the sidecar.
    Run(run::Run),
    /// Shows it at work: an app with faults that can be switched, the real sidecar in front of it, and a small load.
    Demo(demo::Demo),
    /// Reads policies as the sidecar would, and shows every fault with its place and its mend.
    Check(check::Check),
    /// Prints the JSON Schema of the policy file.
    Schema,
    /// Shows which route a request would take, and every policy that holds for it with where it comes from.
    Explain(explain::Explain),
    /// Shows in words what a reload would change, keep and begin anew.
    Diff(diff::Diff),
    /// Shows the state of a running sidecar.
    Status(Admin),
    /// Makes a running sidecar send its callers away, and waits until it has drained; it goes on serving the app until SIGTERM.
    Drain(drain::Drain),
    /// Makes a running sidecar read its policies again.
    Reload(Admin),
    /// Shows or changes the breakers of a running sidecar.
    Breaker(remote::Breaker),
    /// Asks a running sidecar whether it is ready: exit code 0 or 1, for exec probes.
    Healthcheck(remote::Healthcheck),
}

/// Where a running sidecar is reached.
#[derive(Debug, Clone, clap::Args)]
struct Admin {
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
                Outcome::Usage
            } else {
                Outcome::Fine
            }
            .into();
        }
    };
    let outcome = match cli.command {
        Command::Run(run) => run.run(),
        Command::Demo(demo) => demo.run(),
        Command::Check(check) => check.run(),
        Command::Schema => schema(),
        Command::Explain(explain) => explain.run(),
        Command::Diff(diff) => diff.run(),
        Command::Status(admin) => remote::status(&admin),
        Command::Drain(drain) => drain.run(),
        Command::Reload(admin) => remote::reload(&admin),
        Command::Breaker(breaker) => breaker.run(),
        Command::Healthcheck(healthcheck) => healthcheck.run(),
    };
    outcome.into()
}

fn schema() -> Outcome {
    say(&format!("{:#}", crate::policy::schema()));
    Outcome::Fine
}

/// Prints to standard output.
fn say(text: &str) {
    // Whoever closed the pipe wants no more.
    _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
}

/// Prints to standard error.
fn complain(text: &str) {
    // If nobody can be told, nobody can.
    _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}

/// The environment, for `${NAME}` in policies; what is not text cannot be meant.
fn environment() -> std::collections::HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

//! The command line: one file per subcommand.
//!
//! Errors go to standard error, and name the problem, its location and the fix. Exit codes:
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | success |
//! | 1 | negative result, for example a failed probe |
//! | 64 | invalid arguments or settings |
//! | 65 | policies rejected |
//! | 69 | an address cannot be bound or reached |
//! | 70 | internal error |

mod admin_client;
mod arguments;
mod check;
mod demo;
mod diff;
mod drain;
mod explain;
mod output;
mod run;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::cli::{
    arguments::AdminOptions,
    output::{CommandOutcome, print_line},
};

/// A per-service resilience sidecar: circuit breakers, rate limits, retries, timeouts, health
/// checks and lossless drain for HTTP.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Runs the sidecar until SIGTERM, SIGINT or a request to `/quitquitquit`.
    Run(run::RunCommand),
    /// Runs an embedded app with switchable faults, the real sidecar in front of it, and a
    /// small load.
    Demo(demo::DemoCommand),
    /// Loads policies as the sidecar would, and shows every error with its location and the fix.
    Check(check::CheckCommand),
    /// Prints the JSON Schema of the policy file.
    Schema,
    /// Shows the route that a request would match, its policies, and the source of each value.
    Explain(explain::ExplainCommand),
    /// Describes what a reload would change, retain and reset.
    Diff(diff::DiffCommand),
    /// Shows the state of a running sidecar.
    Status(AdminOptions),
    /// Drains a running sidecar and waits until it has drained. The sidecar continues to serve
    /// the app until SIGTERM.
    Drain(drain::DrainCommand),
    /// Reloads the policies of a running sidecar.
    Reload(AdminOptions),
    /// Shows or changes the circuit breakers of a running sidecar.
    Breaker(admin_client::BreakerCommand),
    /// Exits with 0 if a probe of a running sidecar passes, and with 1 if it fails. For exec
    /// probes.
    Healthcheck(admin_client::HealthcheckCommand),
}

/// Parses the arguments, runs the command that they name, and returns its exit code.
///
/// Invalid arguments are reported on standard error, with exit code 64.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` arrive here too, and are no errors. A failure to print
            // cannot be reported.
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

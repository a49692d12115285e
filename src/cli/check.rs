//! `outrigger check`: loads policies as the sidecar would, without opening a socket.
//!
//! It prints every error and warning of every set. The exit code is 65 if any set is rejected.
//! It does not know which policies a running sidecar uses.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    cli::{
        arguments::read_environment,
        output::{CommandOutcome, print_error, print_line},
    },
    policy::{self, diagnostic::Diagnostics},
};

/// Policy sets to check, and the output format.
#[derive(Debug, Args)]
pub(super) struct CheckCommand {
    /// Policy directories or files. Each argument is a separate policy set.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Output format of errors and warnings.
    #[arg(long, default_value = "human", value_enum)]
    format: DiagnosticFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DiagnosticFormat {
    Human,
    Json,
    Github,
}

impl CheckCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let environment = read_environment();
        let mut outcome = CommandOutcome::Success;
        let mut json = Vec::new();
        for path in &self.paths {
            let (diagnostics, summary) = match policy::load(path, &environment) {
                Ok(loaded) => {
                    let snapshot = &loaded.snapshot;
                    let counts = format!(
                        "{} listeners, {} backends, {} routes",
                        snapshot.listeners.len(),
                        snapshot.backends.len(),
                        snapshot.routes.len()
                    );
                    (
                        loaded.warnings,
                        format!("{}: valid, {counts}", path.display()),
                    )
                }
                Err(errors) => {
                    outcome = CommandOutcome::PolicyRefused;
                    let count = errors.as_slice().len();
                    (
                        errors,
                        format!(
                            "{}: invalid, {count} {}",
                            path.display(),
                            if count == 1 { "error" } else { "errors" }
                        ),
                    )
                }
            };
            match self.format {
                DiagnosticFormat::Human => print_human(&diagnostics, &summary, outcome),
                DiagnosticFormat::Json => json.extend(
                    diagnostics
                        .to_json()
                        .as_array()
                        .cloned()
                        .unwrap_or_default(),
                ),
                DiagnosticFormat::Github => print_line(&diagnostics.to_github()),
            }
        }
        if matches!(self.format, DiagnosticFormat::Json) {
            print_line(&format!("{:#}", serde_json::Value::Array(json)));
        }
        outcome
    }
}

fn print_human(diagnostics: &Diagnostics, summary: &str, outcome: CommandOutcome) {
    if !diagnostics.as_slice().is_empty() {
        print_error(&format!("{}\n", diagnostics.to_human()));
    }
    if outcome == CommandOutcome::Success {
        print_line(summary)
    } else {
        print_error(summary)
    }
}

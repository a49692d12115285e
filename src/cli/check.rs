//! `outrigger check`: the loader itself, without sockets.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Outcome, complain, environment, say};
use crate::policy::{self, diagnostic::Diagnostics};

/// What to look at, and how to tell.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Policy directories or files; each is a set of its own.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How faults are shown.
    #[arg(long, default_value = "human", value_enum)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
    Github,
}

impl Check {
    pub(super) fn run(self) -> Outcome {
        let environment = environment();
        let mut outcome = Outcome::Fine;
        let mut json = Vec::new();
        for path in &self.paths {
            let (faults, summary) = match policy::load(path, &environment) {
                Ok(loaded) => {
                    let set = &loaded.snapshot;
                    let counts = format!(
                        "{} listeners, {} backends, {} routes",
                        set.listeners.len(),
                        set.backends.len(),
                        set.routes.len()
                    );
                    (
                        loaded.warnings,
                        format!("{}: fine, {counts}", path.display()),
                    )
                }
                Err(faults) => {
                    outcome = Outcome::PolicyRefused;
                    let count = faults.as_slice().len();
                    (
                        faults,
                        format!(
                            "{}: refused, {count} {}",
                            path.display(),
                            if count == 1 { "fault" } else { "faults" }
                        ),
                    )
                }
            };
            match self.format {
                Format::Human => human(&faults, &summary, outcome),
                Format::Json => {
                    json.extend(faults.to_json().as_array().cloned().unwrap_or_default())
                }
                Format::Github => say(&faults.to_github()),
            }
        }
        if matches!(self.format, Format::Json) {
            say(&format!("{:#}", serde_json::Value::Array(json)));
        }
        outcome
    }
}

fn human(faults: &Diagnostics, summary: &str, outcome: Outcome) {
    if !faults.as_slice().is_empty() {
        complain(&format!("{}\n", faults.to_human()));
    }
    if outcome == Outcome::Fine {
        say(summary)
    } else {
        complain(summary)
    }
}

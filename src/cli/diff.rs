//! `outrigger diff`: shows what a reload from one policy set to another would change.
//!
//! It compares two sets of files and calls no running sidecar.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{
        arguments::read_environment,
        output::{CommandOutcome, print_error, print_line},
    },
    policy::{self, diff},
};

/// Two policy sets to compare.
#[derive(Debug, Args)]
pub(super) struct DiffCommand {
    /// Current policy directory or file.
    old: PathBuf,
    /// New policy directory or file.
    new: PathBuf,
}

impl DiffCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let environment = read_environment();
        let (old, new) = match (
            policy::load(&self.old, &environment),
            policy::load(&self.new, &environment),
        ) {
            (Ok(old), Ok(new)) => (old.snapshot, new.snapshot),
            (old, new) => {
                for faults in [old.err(), new.err()].into_iter().flatten() {
                    print_error(&faults.to_human());
                }
                return CommandOutcome::PolicyRefused;
            }
        };
        let changes = diff::diff(&old, &new);
        print_line(&if changes.is_empty() {
            "nothing would change".to_owned()
        } else {
            changes.join("\n")
        });
        CommandOutcome::Success
    }
}

//! `outrigger diff`: what a reload would change.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, complain, environment, say};
use crate::policy::{self, diff};

/// Two sets of policies.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The set in force.
    old: PathBuf,
    /// The set that would be.
    new: PathBuf,
}

impl Diff {
    pub(super) fn run(self) -> Outcome {
        let environment = environment();
        let (old, new) = match (
            policy::load(&self.old, &environment),
            policy::load(&self.new, &environment),
        ) {
            (Ok(old), Ok(new)) => (old.snapshot, new.snapshot),
            (old, new) => {
                for faults in [old.err(), new.err()].into_iter().flatten() {
                    complain(&faults.to_human());
                }
                return Outcome::PolicyRefused;
            }
        };
        let changes = diff::diff(&old, &new);
        say(&if changes.is_empty() {
            "nothing would change".to_owned()
        } else {
            changes.join("\n")
        });
        Outcome::Fine
    }
}

//! What a command reports: text for people, and the exit code.

use std::{io::Write as _, process::ExitCode};

/// Result of a command, which determines the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandOutcome {
    Success,
    /// The command ran and its result is negative, for example a failed probe (exit code 1).
    Negative,
    UsageError,
    PolicyRefused,
    Unavailable,
    InternalError,
}

/// Prints the text and one line break to standard output.
pub(super) fn print_line(text: &str) {
    // If the write fails, the reader has closed the pipe and needs no more output.
    _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
}

/// Prints the text and one line break to standard error.
pub(super) fn print_error(text: &str) {
    // If the write fails, there is no other channel to report it on.
    _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
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

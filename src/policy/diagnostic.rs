//! Diagnostics of policy files: the problem, its location and the fix.
//!
//! One value has three renderings: text with the line and a caret for people, JSON for
//! programs, and workflow commands for GitHub Actions. The module does not know what is valid;
//! the compiler creates the diagnostics.

use std::{fmt::Write as _, sync::Arc};

use serde_json::json;

/// Severity of a diagnostic. Errors sort before warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The policy set is refused.
    Error,
    /// The policy set is accepted.
    Warning,
}

/// Location in a file. Lines and columns count from 1; line 0 means the whole file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    /// File name, as the user specified it.
    pub file: Arc<str>,
    /// Line number, or 0 for the whole file.
    pub line: usize,
    /// Column number, in characters.
    pub column: usize,
    /// Text of the line, for the rendering with a caret.
    pub text: String,
}

impl SourceSpan {
    /// Creates the location of a whole file.
    #[must_use]
    pub fn whole_file(file: Arc<str>) -> Self {
        Self {
            file,
            line: 0,
            column: 0,
            text: String::new(),
        }
    }

    /// Creates a location from the line and column in a file with this text.
    #[must_use]
    pub fn from_position(file: Arc<str>, text: &str, (line, column): (usize, usize)) -> Self {
        let text = line
            .checked_sub(1)
            .and_then(|index| yaml_lines(text).nth(index))
            .unwrap_or_default();
        Self {
            file,
            line,
            column,
            text: text.to_owned(),
        }
    }
}

/// Splits a text into lines as YAML does: at a line feed, a carriage return, or both together
/// (YAML 1.2, section 5.4).
fn yaml_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// One problem in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Severity of the problem, which determines whether the policy set is refused.
    pub severity: Severity,
    /// Location of the problem.
    pub span: SourceSpan,
    /// Description of the problem, in lower case and without a full stop.
    pub message: String,
    /// Fix of the problem, if one is known.
    pub hint: Option<String>,
}

/// Diagnostics in the order of their locations, without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl std::fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for diagnostic in &self.0 {
            write!(f, "{separator}{}", diagnostic.to_single_line())?;
            separator = "; ";
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl Diagnostics {
    /// Sorts diagnostics by location and removes duplicates.
    #[must_use]
    pub fn new(mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by(|a, b| {
            (&a.span, a.severity, &a.message).cmp(&(&b.span, b.severity, &b.message))
        });
        diagnostics.dedup();
        Self(diagnostics)
    }

    /// Returns the diagnostics in the order of their locations.
    #[must_use]
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.0
    }

    /// Returns the first error as one line, or the first warning if there is no error.
    #[must_use]
    pub fn headline(&self) -> String {
        self.0
            .iter()
            .min_by_key(|diagnostic| diagnostic.severity)
            .map(Diagnostic::to_single_line)
            .unwrap_or_default()
    }

    /// Renders the diagnostics for people: each with its line, a caret and the fix.
    #[must_use]
    pub fn to_human(&self) -> String {
        self.0
            .iter()
            .map(Diagnostic::to_human)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Renders the diagnostics as a JSON array with one object each.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        self.0
            .iter()
            .map(|diagnostic| {
                json!({
                    "severity": diagnostic.severity_name(),
                    "file": &*diagnostic.span.file,
                    "line": diagnostic.span.line,
                    "column": diagnostic.span.column,
                    "message": diagnostic.message,
                    "hint": diagnostic.hint,
                })
            })
            .collect()
    }

    /// Renders the diagnostics as GitHub Actions workflow commands, one line each.
    #[must_use]
    pub fn to_github(&self) -> String {
        let mut out = String::new();
        for diagnostic in &self.0 {
            let hint = diagnostic
                .hint
                .as_deref()
                .map(|hint| format!(" ({hint})"))
                .unwrap_or_default();
            let message = format!("{}{hint}", diagnostic.message)
                .replace('%', "%25")
                .replace('\r', "%0D")
                .replace('\n', "%0A");
            let span = &diagnostic.span;
            // Writing to a String cannot fail.
            _ = writeln!(
                out,
                "::{} file={},line={},col={}::{message}",
                diagnostic.severity_name(),
                span.file,
                span.line.max(1),
                span.column.max(1)
            );
        }
        out
    }
}

impl Diagnostic {
    /// Creates an error at a location, without a fix.
    #[must_use]
    pub fn error(span: SourceSpan, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the fix to the diagnostic.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Renders the diagnostic as `FILE:LINE:COLUMN: MESSAGE`, or `FILE: MESSAGE` for a whole file.
    #[must_use]
    pub fn to_single_line(&self) -> String {
        let span = &self.span;
        match span.line {
            0 => format!("{}: {}", span.file, self.message),
            line => format!("{}:{line}:{}: {}", span.file, span.column, self.message),
        }
    }

    fn to_human(&self) -> String {
        let SourceSpan {
            file,
            line,
            column,
            text,
        } = &self.span;
        let mut out = format!("{}: {}\n", self.severity_name(), self.message);
        let margin = " ".repeat(line.to_string().len());
        // Writing to a String cannot fail.
        if *line == 0 {
            _ = writeln!(out, "  --> {file}");
        } else {
            _ = writeln!(
                out,
                "{margin}--> {file}:{line}:{column}\n{margin} |\n{line} | {text}\n{margin} | {}^",
                " ".repeat(column.saturating_sub(1))
            );
        }
        if let Some(hint) = &self.hint {
            _ = writeln!(out, "{margin} = help: {hint}");
        }
        out
    }

    fn severity_name(&self) -> &'static str {
        match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// Returns the candidate that the author probably meant.
///
/// It is the candidate with the highest Jaro-Winkler similarity, if that exceeds 0.8. Case is
/// ignored.
#[must_use]
pub fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&written.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

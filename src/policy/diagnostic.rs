//! A fault in a policy file: what, where, and the mend.
//!
//! One value, three renderings: for people with the line and a caret, for machines as JSON, and for GitHub as annotations.

use std::{fmt::Write as _, sync::Arc};

use serde_json::json;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The set is refused.
    Error,
    /// The set is taken.
    Warning,
}

/// A place in a file; lines and columns count from 1, a line of 0 is the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// The text of the line.
    pub text: String,
}

impl SourceSpan {
    /// A file as a whole.
    #[must_use]
    pub fn whole_file(file: Arc<str>) -> Self {
        Self {
            file,
            line: 0,
            column: 0,
            text: String::new(),
        }
    }

    /// A line and a column of a file with this text.
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

/// The lines as YAML counts them: a line feed, a carriage return, or both together end one (YAML 1.2, 5.4).
fn yaml_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub span: SourceSpan,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// Faults, in the order of their places.
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
    /// Puts faults in the order of their places.
    #[must_use]
    pub fn new(mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by(|a, b| {
            (&a.span, a.severity, &a.message).cmp(&(&b.span, b.severity, &b.message))
        });
        diagnostics.dedup();
        Self(diagnostics)
    }

    /// The faults.
    #[must_use]
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.0
    }

    /// The worst of them, as one line: the first error, else the first warning.
    #[must_use]
    pub fn headline(&self) -> String {
        self.0
            .iter()
            .min_by_key(|diagnostic| diagnostic.severity)
            .map(Diagnostic::to_single_line)
            .unwrap_or_default()
    }

    /// For people.
    #[must_use]
    pub fn to_human(&self) -> String {
        self.0
            .iter()
            .map(Diagnostic::to_human)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// For machines: an array of objects.
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

    /// For GitHub: one workflow command per fault.
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
    /// An error at a place.
    #[must_use]
    pub fn error(span: SourceSpan, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the mend.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// `FILE:LINE:COLUMN: MESSAGE`.
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

/// The candidate that was probably meant, if one is near enough.
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

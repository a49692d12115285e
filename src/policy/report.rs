//! Diagnostics that are collected while policies are compiled, and checks that report them.
//!
//! A location names a field of a document by its path. It is resolved to a line and a column
//! only when a diagnostic is reported. This module does not know which fields exist.

use std::{collections::HashMap, num::NonZeroU32};

use crate::policy::{
    diagnostic::{Diagnostic, Severity, SourceSpan, did_you_mean},
    source::PolicyFile,
    tree::{Node, NodePath, Position},
};

/// Text of a document: its file and its tree of positions.
#[derive(Debug)]
pub(in crate::policy) struct DocumentSource<'a> {
    /// Name of the document, from its metadata.
    pub(in crate::policy) name: String,
    pub(in crate::policy) file: &'a PolicyFile,
    pub(in crate::policy) root: Node,
}

/// Location of a field in a document.
#[derive(Debug, Clone)]
pub(in crate::policy) struct FieldLocation<'a> {
    pub(in crate::policy) source: &'a DocumentSource<'a>,
    pub(in crate::policy) path: NodePath,
}

impl FieldLocation<'_> {
    /// Returns the location of a field below this one.
    pub(in crate::policy) fn key(&self, key: &str) -> Self {
        Self {
            source: self.source,
            path: self.path.key(key),
        }
    }

    /// Returns the location of an item of the list at this location.
    pub(in crate::policy) fn index(&self, index: usize) -> Self {
        Self {
            source: self.source,
            path: self.path.index(index),
        }
    }

    pub(in crate::policy) fn source_span(&self) -> SourceSpan {
        source_span(self.source.file, self.source.root.locate(&self.path))
    }
}

pub(in crate::policy) fn source_span(file: &PolicyFile, position: Position) -> SourceSpan {
    SourceSpan::from_position(file.name.clone(), &file.text, position)
}

/// Diagnostic that was just reported, to which the fix can be added. It is empty if suppressed.
pub(in crate::policy) struct ReportedDiagnostic<'f>(Option<&'f mut Diagnostic>);

impl ReportedDiagnostic<'_> {
    pub(in crate::policy) fn hint(self, hint: impl Into<String>) {
        if let Some(diagnostic) = self.0 {
            diagnostic.hint = Some(hint.into());
        }
    }
}

/// Diagnostics of one policy set, in the order in which they were found.
#[derive(Debug, Default)]
pub(in crate::policy) struct DiagnosticReport {
    pub(in crate::policy) diagnostics: Vec<Diagnostic>,
    /// Whether a file could not be read as policies, so that an unknown name may be defined in it.
    pub(in crate::policy) is_partial: bool,
    /// Whether warnings are suppressed, while sections are compiled that may have no effect.
    pub(in crate::policy) suppresses_warnings: bool,
}

impl DiagnosticReport {
    pub(in crate::policy) fn error(
        &mut self,
        at: &FieldLocation<'_>,
        message: impl Into<String>,
    ) -> ReportedDiagnostic<'_> {
        self.diagnostics
            .push(Diagnostic::error(at.source_span(), message));
        ReportedDiagnostic(self.diagnostics.last_mut())
    }

    pub(in crate::policy) fn warning(
        &mut self,
        at: &FieldLocation<'_>,
        message: impl Into<String>,
    ) -> ReportedDiagnostic<'_> {
        if self.suppresses_warnings {
            return ReportedDiagnostic(None);
        }
        self.diagnostics.push(Diagnostic {
            severity: Severity::Warning,
            ..Diagnostic::error(at.source_span(), message)
        });
        ReportedDiagnostic(self.diagnostics.last_mut())
    }

    /// Reports a name that is invalid or already in use.
    pub(in crate::policy) fn check_name(
        &mut self,
        at: &FieldLocation<'_>,
        kind: &str,
        name: &str,
        seen: &mut HashMap<String, SourceSpan>,
    ) {
        let is_name = !name.is_empty()
            && name.len() <= 63
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
            });
        if !is_name {
            self.error(at, format!("`{name}` cannot be the name of a {kind}"))
                .hint("use up to 63 lower-case letters, digits, `-` and `.`");
        }
        if let Some(first) = seen.get(name) {
            let hint = format!("the other is at {}:{}", first.file, first.line);
            self.error(at, format!("the {kind} `{name}` is given twice"))
                .hint(hint);
        } else {
            seen.insert(name.to_owned(), at.source_span());
        }
    }

    /// Parses a header name, converted to lower case, and reports an invalid one.
    pub(in crate::policy) fn parse_header_name(
        &mut self,
        at: &FieldLocation<'_>,
        name: &str,
    ) -> Option<http::HeaderName> {
        let parsed = name.to_ascii_lowercase().parse().ok();
        if parsed.is_none() {
            self.error(at, format!("`{name}` is not the name of a header"))
                .hint("header names are letters, digits and `-`");
        }
        parsed
    }

    /// Parses a method in upper case, and reports an invalid one.
    pub(in crate::policy) fn parse_method(
        &mut self,
        at: &FieldLocation<'_>,
        method: &str,
    ) -> Option<http::Method> {
        let is_capitals =
            !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
        if !is_capitals {
            self.error(at, format!("`{method}` is not a method"))
                .hint("methods are written in capitals, like `GET`");
        }
        method.parse().ok().filter(|_| is_capitals)
    }

    pub(in crate::policy) fn report_unknown_reference<'n>(
        &mut self,
        at: &FieldLocation<'_>,
        kind: &str,
        name: &str,
        known: impl Iterator<Item = &'n str> + Clone,
    ) {
        if self.is_partial {
            return;
        }
        let hint = did_you_mean(name, known.clone())
            .map(|suggestion| format!("did you mean `{suggestion}`?"));
        let hint = hint.unwrap_or_else(|| {
            let known: Vec<&str> = known.collect();
            if known.is_empty() {
                format!("there is no {kind} at all")
            } else {
                format!("known: {}", known.join(", "))
            }
        });
        self.error(at, format!("there is no {kind} `{name}`"))
            .hint(hint);
    }

    /// Returns the value of a field, or its default, and reports 0.
    pub(in crate::policy) fn require_at_least_one(
        &mut self,
        at: &FieldLocation<'_>,
        key: &str,
        value: Option<u32>,
        default: u32,
    ) -> NonZeroU32 {
        NonZeroU32::new(value.unwrap_or(default)).unwrap_or_else(|| {
            self.error(&at.key(key), format!("`{key}` must be at least 1"))
                .hint(format!("{default} is the default"));
            NonZeroU32::MIN
        })
    }

    /// Parses a range of IP addresses in CIDR notation, and reports an invalid one.
    pub(in crate::policy) fn parse_cidr(
        &mut self,
        at: &FieldLocation<'_>,
        text: &str,
    ) -> Option<ipnet::IpNet> {
        let range = text.parse().ok();
        if range.is_none() {
            self.error(at, format!("`{text}` is not a range of addresses"))
                .hint("write it like `10.0.0.0/8` or `0.0.0.0/0`");
        }
        range
    }

    /// Reports a status that no response can have.
    pub(in crate::policy) fn check_final_status(&mut self, at: &FieldLocation<'_>, status: u16) {
        if !(200..=599).contains(&status) {
            self.error(at, format!("{status} is not the status of a response"))
                .hint("write a number from 200 to 599");
        }
    }
}

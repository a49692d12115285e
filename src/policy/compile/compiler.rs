//! The compiler's access to the documents, and the diagnostics that it reports.

use std::{collections::HashMap, sync::Arc};

use crate::policy::{
    diagnostic::{Diagnostic, Severity, SourceSpan, did_you_mean},
    document::{Document, Sections},
    snapshot::SectionOrigin,
    source::PolicyFile,
    tree::{Node, NodePath, Position},
};

/// A document, with its file and its tree of positions.
pub(super) struct LocatedDocument<'a> {
    pub(super) file: &'a PolicyFile,
    pub(super) root: Node,
    pub(super) document: Document,
}

/// Location of a field in a document that is being compiled.
#[derive(Clone)]
pub(super) struct FieldLocation<'a> {
    pub(super) located: &'a LocatedDocument<'a>,
    pub(super) path: NodePath,
}

impl FieldLocation<'_> {
    pub(super) fn key(&self, key: &str) -> Self {
        Self {
            located: self.located,
            path: self.path.key(key),
        }
    }

    pub(super) fn index(&self, index: usize) -> Self {
        Self {
            located: self.located,
            path: self.path.index(index),
        }
    }

    pub(super) fn source_span(&self) -> SourceSpan {
        source_span(self.located.file, self.located.root.locate(&self.path))
    }
}

/// Sections of one source, with its location and origin.
pub(super) struct SectionScope<'s, 'a> {
    pub(super) origin: SectionOrigin,
    pub(super) at: FieldLocation<'a>,
    pub(super) sections: &'s Sections,
}

/// Diagnostic that was just reported, to which the fix can be added. It is empty if suppressed.
pub(super) struct ReportedDiagnostic<'f>(Option<&'f mut Diagnostic>);

impl ReportedDiagnostic<'_> {
    pub(super) fn hint(self, hint: impl Into<String>) {
        if let Some(diagnostic) = self.0 {
            diagnostic.hint = Some(hint.into());
        }
    }
}

pub(super) fn source_span(file: &PolicyFile, position: Position) -> SourceSpan {
    SourceSpan::from_position(file.name.clone(), &file.text, position)
}

/// Compiler of one policy set, with the diagnostics so far.
pub(super) struct Compiler<'a> {
    pub(super) documents: &'a [LocatedDocument<'a>],
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Whether a file was refused, so that an unknown name may be defined in it.
    pub(super) is_partial: bool,
    /// Whether warnings are suppressed, while sections are compiled that may have no effect.
    pub(super) suppresses_warnings: bool,
}

impl<'a> Compiler<'a> {
    pub(super) fn check_document_names(&mut self) {
        let mut seen = HashMap::new();
        for located in self.documents {
            let at = FieldLocation {
                located,
                path: NodePath::default().key("metadata").key("name"),
            };
            self.check_name(&at, "document", &located.document.metadata.name, &mut seen);
        }
    }

    /// Returns the items of a list in all documents, with their locations.
    pub(super) fn collect_items<T: 'a>(
        &self,
        key: &str,
        list: impl Fn(&'a Document) -> &'a [T],
    ) -> Vec<(FieldLocation<'a>, &'a T)> {
        let mut all = Vec::new();
        for located in self.documents {
            let at = FieldLocation {
                located,
                path: NodePath::default().key("spec").key(key),
            };
            all.extend(
                list(&located.document)
                    .iter()
                    .enumerate()
                    .map(|(index, item)| (at.index(index), item)),
            );
        }
        all
    }

    /// Returns a section that only one document may contain, and reports further ones.
    pub(super) fn find_single_section<T: 'a>(
        &mut self,
        key: &str,
        section: impl Fn(&'a Document) -> Option<&'a T>,
    ) -> Option<(FieldLocation<'a>, &'a T)> {
        let mut found: Option<(FieldLocation<'a>, &'a T)> = None;
        for located in self.documents {
            let Some(value) = section(&located.document) else {
                continue;
            };
            let at = FieldLocation {
                located,
                path: NodePath::default().key("spec").key(key),
            };
            if let Some((first, _)) = &found {
                let first = first.source_span();
                self.error(&at, format!("`{key}` is given twice"))
                    .hint(format!(
                        "the other is at {}:{}; keep one",
                        first.file, first.line
                    ));
            } else {
                found = Some((at, value));
            }
        }
        found
    }

    /// Reports a name that is invalid or already in use.
    pub(super) fn check_name(
        &mut self,
        at: &FieldLocation<'a>,
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
    pub(super) fn parse_header_name(
        &mut self,
        at: &FieldLocation<'a>,
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
    pub(super) fn parse_method(
        &mut self,
        at: &FieldLocation<'a>,
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

    pub(super) fn report_unknown_reference<'n>(
        &mut self,
        at: &FieldLocation<'a>,
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

    pub(super) fn collect_named_policies(&mut self) -> HashMap<&'a str, SectionScope<'a, 'a>> {
        let mut policies = HashMap::new();
        let mut seen = HashMap::new();
        for located in self.documents {
            let at = FieldLocation {
                located,
                path: NodePath::default().key("spec").key("policies"),
            };
            for (name, sections) in &located.document.spec.policies {
                let at = at.key(name);
                self.check_name(&at, "policy", name, &mut seen);
                let origin = SectionOrigin::RoutePolicy(Arc::from(name.as_str()));
                policies.insert(
                    name.as_str(),
                    SectionScope {
                        origin,
                        at,
                        sections,
                    },
                );
            }
        }
        policies
    }

    pub(super) fn error(
        &mut self,
        at: &FieldLocation<'_>,
        message: impl Into<String>,
    ) -> ReportedDiagnostic<'_> {
        self.diagnostics
            .push(Diagnostic::error(at.source_span(), message));
        ReportedDiagnostic(self.diagnostics.last_mut())
    }

    pub(super) fn warning(
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
}

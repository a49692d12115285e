//! Compiles policy documents into a snapshot.
//!
//! The compiler fills in defaults, resolves names, inherits sections, and reports every
//! problem. It does not stop at the first problem: an invalid part is omitted and the rest is
//! still checked. A snapshot results only if there is no error. The compiler opens no
//! certificate or endpoint file, and knows no runtime state.

mod admission;
mod backends;
mod balancing;
mod degradation;
mod global_rate_limit;
mod health;
mod lifecycle;
mod listeners;
mod process;
mod protection;
mod rate_limits;
mod routes;
mod sections;
mod tls;

use std::{collections::HashMap, sync::Arc};

use crate::policy::{
    LoadedPolicy,
    diagnostic::{Diagnostic, Diagnostics, Severity, SourceSpan, did_you_mean},
    document::{Document, Sections},
    schema_check,
    snapshot::{PolicySnapshot, SectionOrigin},
    source::{PolicyFile, PolicySource},
    tree::{self, Node, NodePath, Position},
};

/// Compiles a policy set, with `environment` substituted for `${NAME}`.
///
/// # Errors
/// Returns all diagnostics of all files if at least one is an error.
pub fn compile(
    source: &PolicySource,
    environment: &HashMap<String, String>,
) -> Result<LoadedPolicy, Diagnostics> {
    let (documents, mut faults) = read_documents(source, environment);
    let is_partial = !faults.is_empty();
    let mut compiler = Compiler {
        documents: &documents,
        diagnostics: Vec::new(),
        is_partial,
        suppresses_warnings: false,
    };
    let snapshot = compiler.compile(source.hash());
    faults.append(&mut compiler.diagnostics);
    if faults.is_empty() && snapshot.listeners.is_empty() {
        let message = if documents.is_empty() {
            "there is no policy in it"
        } else {
            "there is no listener in this set"
        };
        let file = source
            .files()
            .first()
            .map(|file| file.name.clone())
            .unwrap_or_default();
        let place = SourceSpan::whole_file(file);
        faults.push(
            Diagnostic::error(place, message)
                .with_hint("a set has at least one listener; an empty one would close every port"),
        );
    }
    redact_environment(&mut faults, source, environment);
    let diagnostics = Diagnostics::new(faults);
    let has_errors = diagnostics
        .as_slice()
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    if has_errors {
        Err(diagnostics)
    } else {
        Ok(LoadedPolicy {
            snapshot,
            warnings: diagnostics,
        })
    }
}

/// A document, with its file and its tree of positions.
struct LocatedDocument<'a> {
    file: &'a PolicyFile,
    root: Node,
    document: Document,
}

/// Location of a field in a document that is being compiled.
#[derive(Clone)]
struct FieldLocation<'a> {
    located: &'a LocatedDocument<'a>,
    path: NodePath,
}

impl FieldLocation<'_> {
    fn key(&self, key: &str) -> Self {
        Self {
            located: self.located,
            path: self.path.key(key),
        }
    }

    fn index(&self, index: usize) -> Self {
        Self {
            located: self.located,
            path: self.path.index(index),
        }
    }

    fn source_span(&self) -> SourceSpan {
        source_span(self.located.file, self.located.root.locate(&self.path))
    }
}

/// Sections of one source, with its location and origin.
struct SectionScope<'s, 'a> {
    origin: SectionOrigin,
    at: FieldLocation<'a>,
    sections: &'s Sections,
}

struct Compiler<'a> {
    documents: &'a [LocatedDocument<'a>],
    diagnostics: Vec<Diagnostic>,
    /// Whether a file was refused, so that an unknown name may be defined in it.
    is_partial: bool,
    /// Whether warnings are suppressed, while sections are compiled that may have no effect.
    suppresses_warnings: bool,
}

impl<'a> Compiler<'a> {
    fn compile(&mut self, hash: String) -> PolicySnapshot {
        self.check_document_names();
        let defaults =
            self.find_single_section("defaults", |document| document.spec.defaults.as_ref());
        let defaults = defaults.map(|(at, sections)| SectionScope {
            origin: SectionOrigin::Defaults,
            at,
            sections,
        });
        let policies = self.collect_named_policies();
        self.check_unused_sections(policies.values().chain(&defaults));

        let listeners = self.compile_listeners();
        let backends = self.compile_backends();
        let references = routes::RouteReferences {
            listeners: &listeners,
            backends: &backends,
            policies: &policies,
            defaults: defaults.as_ref(),
        };
        let (routes, rules) = self.compile_routes(&references);
        let lifecycle = self.compile_lifecycle(&backends);
        let recoveries = self.compile_recoveries(&backends, &routes);
        let global_rate_limit = self.compile_global_rate_limit(&backends, &routes);
        let protection = self.compile_protection();
        let access_log = self.compile_access_log();
        PolicySnapshot {
            hash,
            listeners: listeners.into_iter().map(|(_, spec)| spec).collect(),
            backends: backends
                .into_iter()
                .map(|(_, backend)| backend.spec)
                .collect(),
            routes,
            rules_by_listener: rules,
            lifecycle,
            recoveries,
            global_rate_limit,
            protection,
            access_log,
        }
    }

    fn check_document_names(&mut self) {
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
    fn collect_items<T: 'a>(
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
    fn find_single_section<T: 'a>(
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
    fn check_name(
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
    fn parse_header_name(
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
    fn parse_method(&mut self, at: &FieldLocation<'a>, method: &str) -> Option<http::Method> {
        let is_capitals =
            !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
        if !is_capitals {
            self.error(at, format!("`{method}` is not a method"))
                .hint("methods are written in capitals, like `GET`");
        }
        method.parse().ok().filter(|_| is_capitals)
    }

    fn report_unknown_reference<'n>(
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

    fn collect_named_policies(&mut self) -> HashMap<&'a str, SectionScope<'a, 'a>> {
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

    fn error(
        &mut self,
        at: &FieldLocation<'_>,
        message: impl Into<String>,
    ) -> ReportedDiagnostic<'_> {
        self.diagnostics
            .push(Diagnostic::error(at.source_span(), message));
        ReportedDiagnostic(self.diagnostics.last_mut())
    }

    fn warning(
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

/// Diagnostic that was just reported, to which the fix can be added. It is empty if suppressed.
struct ReportedDiagnostic<'f>(Option<&'f mut Diagnostic>);

impl ReportedDiagnostic<'_> {
    fn hint(self, hint: impl Into<String>) {
        if let Some(diagnostic) = self.0 {
            diagnostic.hint = Some(hint.into());
        }
    }
}

fn read_documents<'a>(
    source: &'a PolicySource,
    environment: &HashMap<String, String>,
) -> (Vec<LocatedDocument<'a>>, Vec<Diagnostic>) {
    let schema = crate::policy::json_schema();
    let mut documents = Vec::new();
    let mut diagnostics = Vec::new();
    for file in source.files() {
        let roots = match tree::parse(&file.text) {
            Ok(roots) => roots,
            Err((position, message)) => {
                diagnostics.push(Diagnostic::error(
                    source_span(file, position),
                    format!("not YAML: {message}"),
                ));
                continue;
            }
        };
        let before = diagnostics.len();
        for diagnostic in roots
            .iter()
            .flat_map(|root| schema_check::check(root, &schema))
        {
            diagnostics.push(Diagnostic {
                hint: diagnostic.hint,
                ..Diagnostic::error(source_span(file, diagnostic.position), diagnostic.message)
            });
        }
        if diagnostics.len() > before {
            continue;
        }
        let options =
            serde_saphyr::options! { with_snippet: false }.with_properties(environment.clone());
        match serde_saphyr::from_multiple_with_options::<Document>(&file.text, options) {
            Ok(read) => documents.extend(read.into_iter().zip(roots).map(|(document, root)| {
                LocatedDocument {
                    file,
                    root,
                    document,
                }
            })),
            Err(error) => diagnostics.push(deserialization_diagnostic(file, &error)),
        }
    }
    (documents, diagnostics)
}

/// Replaces the values of environment variables in diagnostics by `${NAME}`, because they may
/// be secrets.
fn redact_environment(
    diagnostics: &mut [Diagnostic],
    source: &PolicySource,
    environment: &HashMap<String, String>,
) {
    let is_used = |name: &str| {
        source
            .files()
            .iter()
            .any(|file| file.text.contains(&format!("${{{name}")))
    };
    // A value below four bytes is no secret, and its replacement would garble the messages.
    let used: Vec<_> = environment
        .iter()
        .filter(|(name, value)| value.len() >= 4 && is_used(name))
        .collect();
    for diagnostic in diagnostics {
        for (name, value) in &used {
            diagnostic.message = diagnostic
                .message
                .replace(value.as_str(), &format!("${{{name}}}"));
            diagnostic.hint = diagnostic
                .hint
                .take()
                .map(|hint| hint.replace(value.as_str(), &format!("${{{name}}}")));
        }
    }
}

fn deserialization_diagnostic(file: &PolicyFile, error: &serde_saphyr::Error) -> Diagnostic {
    let number = |value: u64| usize::try_from(value).unwrap_or_default();
    let position = error.location().map_or((0, 0), |location| {
        (number(location.line()), number(location.column()))
    });
    let message = error.to_string();
    let message = message
        .split(" at line ")
        .next()
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    Diagnostic::error(source_span(file, position), message.to_owned())
}

fn source_span(file: &PolicyFile, position: Position) -> SourceSpan {
    SourceSpan::from_position(file.name.clone(), &file.text, position)
}

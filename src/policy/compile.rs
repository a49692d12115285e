//! Compiles policy documents into a snapshot.
//!
//! The compiler fills in defaults, resolves names, inherits sections, and reports every
//! problem. It does not stop at the first problem: an invalid part is omitted and the rest is
//! still checked. A snapshot results only if there is no error. The compiler opens no
//! certificate or endpoint file, and knows no runtime state.

mod backends;
mod balancing;
mod compiler;
mod global_rate_limit;
mod health;
mod lifecycle;
mod listeners;
mod protection;
mod recovery;
mod routes;
mod telemetry;
mod tls;

use std::collections::HashMap;

use crate::policy::{
    compile::{
        compiler::{Compiler, LocatedDocument},
        routes::references::RouteReferences,
    },
    diagnostic::{Diagnostic, Diagnostics, Severity, SourceSpan},
    document::{self, Document},
    loaded_policy::LoadedPolicy,
    matching::route_table::RouteTable,
    report::{DocumentSource, source_span},
    schema_check,
    sections::{SectionScope, compile_policy, compile_rate_limits, origin::SectionOrigin},
    snapshot::PolicySnapshot,
    source::{PolicyFile, PolicySource},
    tree,
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
    let mut compiler = Compiler::new(&documents, is_partial);
    let snapshot = compiler.compile(source.hash());
    faults.append(&mut compiler.report.diagnostics);
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
        faults.push(Diagnostic::error(place, message).with_hint(
            "a set must have at least one listener; an empty set would close every port",
        ));
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
        let references = RouteReferences {
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
            route_tables: rules.into_iter().map(RouteTable::new).collect(),
            lifecycle,
            recoveries,
            global_rate_limit,
            protection,
            access_log,
        }
    }

    /// Compiles sections that no route may use, so that their errors are reported too.
    fn check_unused_sections<'s>(&mut self, scopes: impl Iterator<Item = &'s SectionScope<'s>>) {
        self.report.suppresses_warnings = true;
        for scope in scopes {
            compile_policy("unused", &[scope], &self.facts, &mut self.report);
            compile_rate_limits(&[scope], &self.facts, &mut self.report);
        }
        self.report.suppresses_warnings = false;
    }
}

fn read_documents<'a>(
    source: &'a PolicySource,
    environment: &HashMap<String, String>,
) -> (Vec<LocatedDocument<'a>>, Vec<Diagnostic>) {
    let schema = document::json_schema();
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
                    source: DocumentSource {
                        name: document.metadata.name.clone(),
                        file,
                        root,
                    },
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

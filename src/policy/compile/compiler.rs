//! The compiler's access to the documents of a policy set.

use std::{collections::HashMap, sync::Arc};

use crate::policy::{
    document::Document,
    report::{DiagnosticReport, DocumentSource, FieldLocation},
    sections::{SectionScope, origin::SectionOrigin, section::PolicySetFacts},
    tree::NodePath,
};

/// A document, with its text.
pub(super) struct LocatedDocument<'a> {
    pub(super) source: DocumentSource<'a>,
    pub(super) document: Document,
}

impl<'a> LocatedDocument<'a> {
    fn field(&'a self, parent: &str, key: &str) -> FieldLocation<'a> {
        FieldLocation {
            source: &self.source,
            path: NodePath::default().key(parent).key(key),
        }
    }
}

/// Compiler of one policy set, with the diagnostics so far.
pub(super) struct Compiler<'a> {
    pub(super) documents: &'a [LocatedDocument<'a>],
    pub(super) facts: PolicySetFacts<'a>,
    pub(super) report: DiagnosticReport,
}

impl<'a> Compiler<'a> {
    /// Creates the compiler of a set. `is_partial` states that some documents could not be read.
    pub(super) fn new(documents: &'a [LocatedDocument<'a>], is_partial: bool) -> Self {
        let specs = || documents.iter().map(|located| &located.document.spec);
        Self {
            documents,
            facts: PolicySetFacts {
                backends: specs()
                    .flat_map(|spec| &spec.backends)
                    .map(|backend| backend.name.as_str())
                    .collect(),
                has_global_rate_limit: specs().any(|spec| spec.global_rate_limit.is_some()),
            },
            report: DiagnosticReport {
                is_partial,
                ..DiagnosticReport::default()
            },
        }
    }

    pub(super) fn check_document_names(&mut self) {
        let mut seen = HashMap::new();
        for located in self.documents {
            let at = located.field("metadata", "name");
            self.report
                .check_name(&at, "document", &located.document.metadata.name, &mut seen);
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
            let at = located.field("spec", key);
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
            let at = located.field("spec", key);
            if let Some((first, _)) = &found {
                let first = first.source_span();
                self.report
                    .error(&at, format!("`{key}` is given twice"))
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

    pub(super) fn collect_named_policies(&mut self) -> HashMap<&'a str, SectionScope<'a>> {
        let mut policies = HashMap::new();
        let mut seen = HashMap::new();
        for located in self.documents {
            let at = located.field("spec", "policies");
            for (name, sections) in &located.document.spec.policies {
                let at = at.key(name);
                self.report.check_name(&at, "policy", name, &mut seen);
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
}

//! Compiles client selectors: the requests that a rate limit rule applies to, and their keys.
//!
//! An `Exact` condition restricts the rule, and a `Distinct` condition creates one bucket per
//! value.

use std::sync::Arc;

use crate::policy::{
    report::{DiagnosticReport, FieldLocation},
    sections::rate_limit::{
        document::{ClientSelector, IdentitySelector, SelectorType},
        spec::SelectorSpec,
    },
};

impl ClientSelector {
    /// Compiles the selector, and reports invalid conditions and a selector without conditions.
    pub(super) fn compile(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<SelectorSpec> {
        let headers = self.compile_headers(at, report);
        let identity = match &self.identity {
            None => None,
            Some(identity) => Some(identity.compile(&at.key("identity"), report)?),
        };
        let path = match &self.path {
            None => None,
            Some(path) => Some(path.compile(&at.key("path"), report)?),
        };
        let methods = self.methods.iter().enumerate();
        let methods = methods
            .filter_map(|(index, method)| {
                let at = at.key("methods").index(index).key("value");
                report.parse_method(&at, &method.value)
            })
            .collect();
        let source_cidr = match &self.source_cidr {
            None => None,
            Some(source) => Some((
                report.parse_cidr(&at.key("sourceCIDR").key("value"), &source.value)?,
                source.kind == SelectorType::Distinct,
            )),
        };
        if self.headers.is_empty()
            && source_cidr.is_none()
            && identity.is_none()
            && path.is_none()
            && self.methods.is_empty()
        {
            let hint = "add `headers`, `path`, `methods`, `sourceCIDR` or `identity`, or remove \
                        the selector to select all requests";
            report
                .error(at, "a selector must have at least one condition")
                .hint(hint);
        }
        Some(SelectorSpec {
            headers,
            path,
            methods,
            source_cidr,
            identity,
        })
    }

    fn compile_headers(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Vec<(http::HeaderName, Option<String>)> {
        let mut headers = Vec::new();
        for (index, header) in self.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let Some(name) = report.parse_header_name(&at.key("name"), &header.name) else {
                continue;
            };
            if let Some(value) =
                compile_selected_value(header.kind, header.value.as_deref(), &at, report)
            {
                headers.push((name, value.map(str::to_owned)));
            }
        }
        headers
    }
}

impl IdentitySelector {
    fn compile(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<Option<Arc<str>>> {
        let value = compile_selected_value(self.kind, self.value.as_deref(), at, report)?;
        Some(value.map(Arc::from))
    }
}

/// Returns the value that is selected, or `Some(None)` if every value is. Reports a value that
/// does not fit the type of the selector, and returns `None`.
fn compile_selected_value<'v>(
    kind: SelectorType,
    value: Option<&'v str>,
    at: &FieldLocation<'_>,
    report: &mut DiagnosticReport,
) -> Option<Option<&'v str>> {
    match (kind, value) {
        (SelectorType::Distinct, None) => return Some(None),
        (SelectorType::Exact, Some(value)) => return Some(Some(value)),
        (SelectorType::Distinct, Some(_)) => report
            .error(&at.key("value"), "Distinct selects every value")
            .hint("remove `value`, or write `type: Exact`"),
        (SelectorType::Exact, None) => report
            .error(at, "Exact needs a value")
            .hint("add `value`, or write `type: Distinct` for one bucket per value"),
    }
    None
}

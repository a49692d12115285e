//! Compiles client selectors: the requests that a rate limit rule applies to, and their keys.
//!
//! An `Exact` condition restricts the rule, and a `Distinct` condition creates one bucket per
//! value.

use std::sync::Arc;

use crate::policy::{
    compile::compiler::{Compiler, FieldLocation},
    document::{ClientSelector, IdentitySelector, SelectorType},
    snapshot::SelectorSpec,
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_selector(
        &mut self,
        at: &FieldLocation<'a>,
        selector: &ClientSelector,
    ) -> Option<SelectorSpec> {
        let headers = self.compile_header_selectors(at, selector);
        let identity = match &selector.identity {
            None => None,
            Some(identity) => Some(self.compile_identity_selector(&at.key("identity"), identity)?),
        };
        let path = match &selector.path {
            None => None,
            Some(path) => Some(self.compile_path_match(&at.key("path"), path)?),
        };
        let methods = selector.methods.iter().enumerate();
        let methods = methods
            .filter_map(|(index, method)| {
                self.parse_method(&at.key("methods").index(index).key("value"), &method.value)
            })
            .collect();
        let source = match &selector.source_cidr {
            None => None,
            Some(source) => Some((
                self.parse_cidr(&at.key("sourceCIDR").key("value"), &source.value)?,
                source.kind == SelectorType::Distinct,
            )),
        };
        if selector.headers.is_empty()
            && source.is_none()
            && identity.is_none()
            && path.is_none()
            && selector.methods.is_empty()
        {
            let hint = "add `headers`, `path`, `methods`, `sourceCIDR` or `identity`, or take the \
                        selector out to mean all requests";
            self.error(at, "a selector that selects nothing").hint(hint);
        }
        Some(SelectorSpec {
            headers,
            path,
            methods,
            source_cidr: source,
            identity,
        })
    }

    fn compile_header_selectors(
        &mut self,
        at: &FieldLocation<'a>,
        selector: &ClientSelector,
    ) -> Vec<(http::HeaderName, Option<String>)> {
        let mut headers = Vec::new();
        for (index, header) in selector.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let Some(name) = self.parse_header_name(&at.key("name"), &header.name) else {
                continue;
            };
            match (header.kind, &header.value) {
                (SelectorType::Distinct, None) => headers.push((name, None)),
                (SelectorType::Exact, Some(value)) => headers.push((name, Some(value.clone()))),
                (SelectorType::Distinct, Some(_)) => self
                    .error(&at.key("value"), "Distinct takes every value")
                    .hint("take `value` out, or write `type: Exact`"),
                (SelectorType::Exact, None) => self
                    .error(&at, "Exact needs a value")
                    .hint("add `value`, or write `type: Distinct` for one bucket per value"),
            }
        }
        headers
    }

    fn compile_identity_selector(
        &mut self,
        at: &FieldLocation<'a>,
        identity: &IdentitySelector,
    ) -> Option<Option<Arc<str>>> {
        match (identity.kind, &identity.value) {
            (SelectorType::Distinct, None) => Some(None),
            (SelectorType::Exact, Some(value)) => Some(Some(Arc::from(value.as_str()))),
            (SelectorType::Distinct, Some(_)) => {
                self.error(&at.key("value"), "Distinct takes every value")
                    .hint("take `value` out, or write `type: Exact`");
                None
            }
            (SelectorType::Exact, None) => {
                self.error(at, "Exact needs a value")
                    .hint("add `value`, or write `type: Distinct` for one bucket per identity");
                None
            }
        }
    }
}

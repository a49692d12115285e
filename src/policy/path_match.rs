//! The path condition of a route or a rate limit, and regular expressions.

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    matching::PathMatchSpec,
    report::{DiagnosticReport, FieldLocation},
};

/// Condition on the path of a request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How the path is compared. Default PathPrefix.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// Path with a leading `/`, or a regular expression.
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The path equals the value.
    Exact,
    /// The first segments of the path equal the value: `/v1` is a prefix of `/v1/a`, but not of
    /// `/v10`.
    #[default]
    PathPrefix,
    /// The regular expression matches the whole path. The syntax is RE2 without look-around.
    RegularExpression,
}

impl PathMatch {
    /// Compiles the condition, and reports an invalid one.
    pub(in crate::policy) fn compile(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<PathMatchSpec> {
        let at = at.key("value");
        if self.kind != PathMatchType::RegularExpression && !self.value.starts_with('/') {
            report
                .error(&at, format!("`{}` is not a path", self.value))
                .hint("a path begins with `/`");
        }
        Some(match self.kind {
            PathMatchType::Exact => PathMatchSpec::Exact(self.value.clone()),
            PathMatchType::PathPrefix => {
                PathMatchSpec::Prefix(self.value.trim_end_matches('/').to_owned())
            }
            PathMatchType::RegularExpression => {
                PathMatchSpec::Regex(compile_regex(&self.value, &at, report)?)
            }
        })
    }
}

/// Compiles a regular expression that must match the whole text, and reports an invalid one.
pub(in crate::policy) fn compile_regex(
    expression: &str,
    at: &FieldLocation<'_>,
    report: &mut DiagnosticReport,
) -> Option<Regex> {
    // The expression is compiled alone first, because an unbalanced parenthesis could close the
    // group around it.
    match Regex::new(expression).and_then(|_| Regex::new(&format!("^(?:{expression})$"))) {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            report
                .error(
                    at,
                    format!("this regular expression does not compile: {reason}"),
                )
                .hint("the syntax is that of the Rust crate `regex`: RE2 without look-around");
            None
        }
    }
}
